"""What a model's name asks for, and what is said where no recording is replayed.

A model name is a list of parts joined by ``+``: ``latency-0.2+500-1+steps-3``. A number behind a
fault says how often it strikes in a conversation, then all is well; ``always``, or no number, is
for ever. One fault strikes at a time, in the order of the name.
A conversation is known by its model and first user message.

Scripts play one after another in the order of the model name, a turn each time, then comes the
final text: ``length-1+steps-3``. The turn is the number of answers that a request holds, so a
retried request gets the same answer. ``steps-N`` is N calls in all, the final one included;
the others play N turns and are followed by the final text.

Settings, whose number means something else: ``latency-S`` (seconds), ``retry-after-S`` (what a 429
or 503 says), ``window-N`` (what of a prompt and the output it asks for is longer, in tokens,
overflows the context), ``no-usage``, ``reasoning`` (it thinks, and refuses, as DeepSeek does, tool
calls that come back without their thinking), ``opaque-N`` (what is sealed of its thinking has about
so many bytes), ``after-N`` (no fault strikes before so many answers). The name of a real model is a
part, too: it has that one's rules and prices, see ``families``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from batchd.records import Answer, FinishReason, ToolCall
from standin import faults
from standin.families import FAMILIES
from standin.simulated_request import LONE_SURROGATE, ended

FINAL = Answer(content="Done.")
#: What the judge says where nothing else is asked for.
_YES = Answer(content='{"done": true, "feedback": ""}')
_NO = Answer(content='{"done": false, "feedback": "The stand-in judge says no."}')
_PROSE = Answer(content="Well, it cannot be said that the task is done, but it looks fine to me.")
#: What a request for a summary of the conversation gets.
SUMMARY = Answer(
    content="The work so far: some commands were run. What is left: the final message."
)


def answer(parts: tuple[NamePart, ...], turn: int, *, native: bool) -> Answer:
    """Return the agent's answer at a turn; ``native`` says whether the request offers tools."""
    for part in parts:
        if part.name in TURNS:
            turns = part.number - (part.name == "steps")
            if turn < turns:
                said = TURNS[part.name](turn)
                return said if native else _as_text(said)
            turn -= int(max(turns, 0))
    return FINAL


def verdict(name: str | None) -> Answer:
    """Return the judge's answer under ``judge-no``, ``judge-prose`` or neither."""
    return {"judge-no": _NO, "judge-prose": _PROSE}.get(name or "", _YES)


def cut(reply: Answer, stop: str | Sequence[str] | None) -> tuple[Answer, str]:
    """Return an answer as a server that honours stop sequences gives it,
    and the sequence that ended it.
    """
    content, ended = reply.content, ""
    for mark in [stop] if isinstance(stop, str) else stop or ():
        if mark and mark in content:
            content, ended = content.partition(mark)[0], mark
    if not ended:
        return reply, ""
    return Answer(content=content, finish_reason="stop", reasoning=reply.reasoning), ended


def _as_text(reply: Answer) -> Answer:
    """Return an answer in the text protocol: its first command as a bash block."""
    commands = [c for c in reply.tool_calls if c.name == "shell"]
    if not commands or reply.finish_reason != "tool_calls":
        return reply
    command = json.loads(commands[0].arguments)["command"]
    return Answer(content=f"{reply.content or 'Next step.'}\n```bash\n{command}\n```\n")


def _tool(
    turn: int, arguments: str, name: str = "shell", finish_reason: FinishReason = "tool_calls"
) -> Answer:
    calls = (ToolCall(f"call_{turn}", name, arguments),)
    return Answer(content="", tool_calls=calls, finish_reason=finish_reason)


def _shell(turn: int, command: str) -> Answer:
    return _tool(turn, json.dumps({"command": command}))


# Three at a time, as models with native calls make them; the outputs are of different lengths.
def _parallel(turn: int) -> Answer:
    commands = (f"seq {10**i} {10**i + 40 * i}; echo {turn}" for i in range(1, 4))
    calls = tuple(
        ToolCall(f"call_{turn}_{i}", "shell", json.dumps({"command": command}))
        for i, command in enumerate(commands)
    )
    return Answer(content="", tool_calls=calls, finish_reason="tool_calls")


_FENCED = """\
```json
{"name": "shell", "arguments": {"command": "echo hello > hello.txt"}}
```"""

#: By their names, what each says at a turn.
TURNS: Mapping[str, Callable[[int], Answer]] = {
    "steps": lambda turn: _shell(turn, f"echo step {turn + 1}"),
    # Leaves a trace of every time that it is run, and takes long enough to be interrupted.
    "notes": lambda turn: _shell(turn, f"echo {turn + 1} >> notes.txt && sleep 0.1"),
    # Enough output to fill a window within a few turns.
    "flood": lambda turn: _shell(turn, f"seq {turn}0001 {turn}2500"),
    # What no elided output makes shorter: only a summary helps.
    "chatter": lambda turn: replace(
        _shell(turn, f"echo thought {turn}"), content=f"Thought {turn}: " + "and so on, " * 120
    ),
    "parallel": _parallel,
    "loop": lambda turn: _shell(turn, "echo again"),
    "length": lambda turn: Answer(content=f"Part {turn + 1}, and ", finish_reason="length"),
    "length-empty": lambda _: Answer(content="", finish_reason="length"),
    "length-tool": lambda turn: _tool(
        turn, '{"path": "big.txt", "content": "aaaa', "write_file", "length"
    ),
    "text-tool": lambda _: Answer(content=_FENCED),
    "bad-tool-json": lambda turn: _tool(turn, '{"command": "echo hi'),
    "unknown-tool": lambda turn: _tool(turn, '{"where": "home"}', "teleport"),
    "content-filter": lambda _: Answer(content="", finish_reason="content_filter"),
    # A model that declines: some dialects have a word for it.
    "refusal": lambda _: ended("I cannot help with that.", "refusal"),
    "surrogate": lambda _: Answer(content=f"Half a smile: {LONE_SURROGATE}"),
    "surrogate-tool": lambda turn: _tool(
        turn, f'{{"command": "echo {LONE_SURROGATE} > half.txt"}}'
    ),
    "empty": lambda _: Answer(content=""),
}
#: Scripts that play once where their name has no number, and not for ever.
_ONCE = frozenset({"length-tool", "text-tool", "bad-tool-json", "unknown-tool", "surrogate-tool"})
#: Settings that need a number, and parts that take none.
_NUMBERED = frozenset({"latency", "retry-after", "window", "opaque", "after"})
_PLAIN = frozenset({*FAMILIES, "no-usage", "reasoning", "demo"})
_JUDGES = frozenset({"judge-no", "judge-prose"})
NAMES = frozenset({*faults.REFUSALS, *faults.DELIVERIES, *_NUMBERED, *_PLAIN, *TURNS, *_JUDGES})


@dataclass(frozen=True, slots=True)
class NamePart:
    """One part of a model name."""

    name: str
    #: How often it strikes, or what its name measures.
    number: float


@functools.lru_cache(4096)
def parse(model: str) -> tuple[NamePart, ...]:
    """Return the parts of a model name. Raises ``ValueError`` where it is none of ours."""
    return tuple(map(_part, model.split("+")))


def _part(text: str) -> NamePart:
    if text in _PLAIN:
        return NamePart(text, math.inf)
    name, number = text, ""
    if name not in NAMES:
        name, _, number = text.rpartition("-")
    if name not in NAMES or name in _PLAIN or (name in _NUMBERED and not number):
        raise ValueError(text)
    if number in {"", "always"}:
        return NamePart(name, 1 if name in _ONCE and not number else math.inf)
    value = float(number)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return NamePart(name, value)


def number(parts: tuple[NamePart, ...], name: str, default: float) -> float:
    """Return what a setting is set to, or its default."""
    return next((part.number for part in parts if part.name == name), default)
