"""What the stand-in says, where it does not replay a recording.

Scripts play one after another in the order of the model name, a turn each time, then comes the
final text: ``length-1+steps-3``. The turn is the number of answers that a request holds, so a
retried request gets the same answer. ``steps-N`` is N calls in all, the final one included;
the others play N turns and are followed by the final text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from batchd.records import Answer, FinishReason, ToolCall
from standin import faults
from standin.faults import NamePart
from standin.simulated_request import LONE_SURROGATE, ended

FINAL = Answer(content="Done.")
#: A command in the text protocol.
_BLOCKS = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)
#: What the judge says where nothing else is asked for.
YES = Answer(content='{"done": true, "feedback": ""}')
_NO = Answer(content='{"done": false, "feedback": "The stand-in judge says no."}')
_PROSE = Answer(content="Well, it cannot be said that the task is done, but it looks fine to me.")
_SUMMARY = Answer(
    content="The work so far: some commands were run. What is left: the final message."
)


def answer(parts: tuple[NamePart, ...], turn: int, *, native: bool) -> Answer:
    """Return the agent's answer at a turn; ``native`` says whether the request offers tools."""
    for part in parts:
        if part.name in _TURNS:
            turns = part.number - (part.name == "steps")
            if turn < turns:
                return _TURNS[part.name](turn) if native else _as_text(_TURNS[part.name](turn))
            turn -= int(max(turns, 0))
    return FINAL


def verdict(name: str | None) -> Answer:
    """Return the judge's answer under ``judge-no``, ``judge-prose`` or neither."""
    return {"judge-no": _NO, "judge-prose": _PROSE}.get(name or "", YES)


def summary() -> Answer:
    """Return the answer to a request for a summary of the conversation."""
    return _SUMMARY


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


def as_calls(reply: Answer, turn: int) -> Answer:
    """Return an answer that was given in the text protocol as one to a request with tools:
    its command as a call.
    """
    found = _BLOCKS.search(reply.content)
    if found is None or reply.tool_calls:
        return reply
    call = _shell(turn, found[1]).tool_calls
    said = reply.content.replace(found[0], "").strip()
    return replace(reply, content=said, tool_calls=call, finish_reason="tool_calls")


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
# Raw line ends within a string, and two objects in one fence: both seen from qwen2.5-coder.
_FENCED_TWO = """\
```json
{"name": "write_file", "arguments": {"path": "a.txt", "content": "one
two
"}}
{"name": "shell", "arguments": {"command": "cat a.txt"}}
```"""
_TAGGED = """\
<tool_call>
{"name": "shell", "arguments": {"command": "echo hello > hello.txt"}}
</tool_call>"""
_BLOCK = """\
I write the file.
```bash
echo hello > hello.txt
```
It printed:
```
hello, says an output that was never printed
```
"""

_TURNS: Mapping[str, Callable[[int], Answer]] = {
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
    "text-tools": lambda _: Answer(content=_FENCED_TWO),
    "tool-tags": lambda _: Answer(content=_TAGGED),
    "bash-block": lambda _: Answer(content=_BLOCK),
    "bad-tool-json": lambda turn: _tool(turn, '{"command": "echo hi'),
    "unknown-tool": lambda turn: _tool(turn, '{"where": "home"}', "teleport"),
    "content-filter": lambda _: Answer(content="", finish_reason="content_filter"),
    # What some dialects have a word for: a model that declines,
    # a window that is full, a turn that goes on.
    "refusal": lambda _: ended("I cannot help with that.", "refusal"),
    "full": lambda _: ended("The work so far", "full"),
    "pause": lambda _: ended("Let me see.", "pause"),
    "surrogate": lambda _: Answer(content=f"Half a smile: {LONE_SURROGATE}"),
    "surrogate-tool": lambda turn: _tool(
        turn, f'{{"command": "echo {LONE_SURROGATE} > half.txt"}}'
    ),
    "empty": lambda _: Answer(content=""),
}
assert _TURNS.keys() | {"judge-no", "judge-prose"} == faults.SCRIPTS.keys()
