"""What Anthropic's Messages demands of a conversation:
the order of its blocks, and its signatures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from standin import opaque
from standin.dialects import message_body
from standin.dialects.message_body import (
    Block,
    CacheBreakpoint,
    MessagesBody,
    MessagesTool,
    RedactedBlock,
    ScriptedTurn,
    Segment,
    TextBlock,
    ThinkingBlock,
)
from standin.families import Family
from standin.opaque import Seal
from standin.simulated_request import InvalidRequestError

_MOST_BREAKPOINTS = 4
_SIGNATURE = "Invalid `signature` in `thinking` block."


def read(body: MessagesBody, family: Family, owner: Seal) -> message_body.MessagesPrompt:
    """Return the prompt of a request.

    ``owner`` is the seal that the answer is going to have,
    but for its prefix. Raises ``InvalidRequestError``.
    """
    prompt = _Prompt(family, owner)
    for tool in body.tools or ():
        prompt.add(tool, canonical(msgspec.json.encode(tool)), tool.cache_control)
    system = [TextBlock(body.system)] if isinstance(body.system, str) else body.system or []
    for text in system:
        prompt.add(text, canonical(msgspec.json.encode(text)), text.cache_control)
    spoken = [
        (message.role, [*_blocks(message, f"messages.{i}")])
        for i, message in enumerate(body.messages)
    ]
    turns = [ScriptedTurn(role, [block for block, _ in said]) for role, said in spoken]
    _check_order(turns, tools=bool(body.tools))
    _check_breakpoints([*(body.tools or ()), *system, *(b for t in turns for b in t.blocks)], body)
    for i, (role, said) in enumerate(spoken):
        prompt.open(role)
        for j, (block, raw) in enumerate(said):
            if isinstance(block, ThinkingBlock | RedactedBlock):
                prompt.think(block, raw, f"messages.{i}.content.{j}")
            else:
                prompt.add(block, canonical(raw), block.cache_control)
        if isinstance(said[-1][0], ThinkingBlock | RedactedBlock) and not prompt.paused:
            raise InvalidRequestError(
                "The final block in an assistant message cannot be `thinking`.", f"messages.{i}"
            )
    own = [(i, turn.blocks) for i, turn in enumerate(turns) if turn.role == "assistant"]
    if own and body.thinking is not None and body.thinking.type == "enabled":
        i, blocks = own[-1]
        called = any(isinstance(block, message_body.ToolUseBlock) for block in blocks)
        if called and not isinstance(blocks[0], ThinkingBlock | RedactedBlock):
            raise InvalidRequestError(
                f"Expected `thinking` or `redacted_thinking`, but found `{_tag(blocks[0])}`. When `thinking` is "
                "enabled, a final `assistant` message must start with a thinking block (preceeding the lastmost "
                "set of `tool_use` and `tool_result` blocks).",
                f"messages.{i}.content.0.type",
            )
    if turns[-1].role == "assistant" and not family.prefill and not prompt.paused:
        raise InvalidRequestError(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    return prompt.read([*_heard(system, turns)], body.cache_control)


def _heard(system: Sequence[TextBlock], turns: Sequence[ScriptedTurn]) -> Iterator[ScriptedTurn]:
    """Yield a conversation as the scripts see it:
    each text of the user is a turn, as if nothing had been merged.
    """
    if system:
        yield ScriptedTurn("system", system)
    for turn in turns:
        if turn.role == "assistant":
            yield turn
            continue
        for block in turn.blocks:
            yield ScriptedTurn(
                "tool" if isinstance(block, message_body.ToolResultBlock) else turn.role, [block]
            )


def _blocks(message: message_body.MessagesTurn, place: str) -> Iterator[tuple[Block, bytes]]:
    """Yield the blocks of a message, with their bytes. Raises ``InvalidRequestError``."""
    content = message.content
    whole = isinstance(content, str)
    raws = (
        [msgspec.json.encode(TextBlock(content))]
        if isinstance(content, str)
        else map(bytes, content)
    )
    if not content:
        raise InvalidRequestError("all messages must have non-empty content", place)
    for j, raw in enumerate(raws):
        at = place if whole else f"{place}.content.{j}"
        block = message_body.block(raw, at)
        if isinstance(block, ThinkingBlock | RedactedBlock) and message.role != "assistant":
            raise InvalidRequestError(
                f"Unexpected `{_tag(block)}` block in a {message.role} turn", at
            )
        if isinstance(block, TextBlock) and not block.text.strip():
            raise InvalidRequestError("text content blocks must be non-empty", at)
        yield block, raw


def _check_breakpoints(marked: Iterable[MessagesTool | Block], body: MessagesBody) -> None:
    """Hold the breakpoints of the cache to their number and order.

    Raises ``InvalidRequestError``.
    """
    marks = [mark for part in marked if (mark := getattr(part, "cache_control", None)) is not None]
    lifetimes = [mark.ttl for mark in marks]
    if body.cache_control is not None:
        lifetimes.append(body.cache_control.ttl)
    if len(lifetimes) > _MOST_BREAKPOINTS:
        raise InvalidRequestError(
            f"A maximum of 4 blocks with cache_control may be provided. Found {len(lifetimes)}."
        )
    if "5m" in lifetimes and "1h" in lifetimes[lifetimes.index("5m") :]:
        raise InvalidRequestError(
            "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
        )


def _tag(block: Block) -> str:
    return str(block.__struct_config__.tag)


def canonical(raw: bytes) -> bytes:
    """Return JSON as it is compared: without its spaces,
    the order of its fields, and its marks for the cache.
    """
    value = msgspec.json.decode(raw)
    value.pop("cache_control", None)
    return msgspec.json.encode(value, order="sorted")


class _Prompt:
    """Puts a prompt together, segment by segment."""

    def __init__(self, family: Family, owner: Seal) -> None:
        self._family = family
        self._owner = owner
        self._segments: list[Segment] = []
        self._raws: list[bytes] = []
        self._breakpoints: list[tuple[int, str]] = []
        self._prefix = ""
        self._role = ""
        self._opaque = self._removed = 0
        #: Whether the latest thinking is of a turn that goes on.
        self.paused = False

    def open(self, role: str) -> None:
        """Begin a message."""
        self._role = role
        self._append(message_body.MessageHead(), role.encode())

    def add(self, segment: Segment, raw: bytes, cache: CacheBreakpoint | None) -> None:
        """Take a segment in, in its canonical form."""
        self._append(segment, raw)
        self._prefix = opaque.digest(self._prefix.encode(), self._role.encode(), raw)
        if cache is not None:
            self._breakpoints.append((len(self._segments) - 1, cache.ttl))

    def _append(self, segment: Segment, raw: bytes) -> None:
        self._segments.append(segment)
        self._raws.append(raw)

    def think(self, block: ThinkingBlock | RedactedBlock, raw: bytes, place: str) -> None:
        """Take thinking in that came back.

        Raises ``InvalidRequestError`` where it is not as it was.
        """
        signed = block.signature if isinstance(block, ThinkingBlock) else block.data
        text = block.thinking if isinstance(block, ThinkingBlock) else ""
        seal = opaque.opened(signed)
        self._opaque += 1
        if seal is None or seal.beside != opaque.digest(text.encode("utf-8", "replace")):
            raise InvalidRequestError(_SIGNATURE, place)
        readable = seal.model == self._owner.model
        if self._family.bound:
            bound = readable and seal.prefix == self._prefix
            if not bound:
                raise InvalidRequestError(
                    f"{_SIGNATURE} The block is bound to a different conversation, and cannot be used in this one.",
                    place,
                )
        if self._family.of_account and seal.account != self._owner.account:
            raise InvalidRequestError(
                f"{_SIGNATURE} The block is bound to a different organization.", place
            )
        canon = canonical(raw)
        self.paused = seal.paused
        self._prefix = opaque.digest(self._prefix.encode(), self._role.encode(), canon)
        if readable:
            self._append(message_body.SignedThinking(seal), canon)
        else:
            self._removed += 1

    def read(
        self, turns: Sequence[ScriptedTurn], cache: CacheBreakpoint | None
    ) -> message_body.MessagesPrompt:
        """Return what was put together; ``cache`` asks for a breakpoint at its end."""
        last = len(self._segments) - 1
        if cache is not None:
            self._breakpoints.append((last, cache.ttl))
        return message_body.MessagesPrompt(
            turns,
            self._segments,
            self._raws,
            self._breakpoints,
            self._prefix,
            self._opaque,
            self._removed,
        )


def _check_order(turns: Sequence[ScriptedTurn], *, tools: bool) -> None:
    """Hold turns and calls to the order that they must have. Raises ``InvalidRequestError``."""
    if not turns:
        raise InvalidRequestError("at least one message is required", "messages")
    if turns[0].role != "user":
        raise InvalidRequestError("first message must use the user role", "messages")
    waiting: list[str] = []
    used: set[str] = set()
    for i, turn in enumerate(turns):
        place = f"messages.{i}"
        calls = [b.id for b in turn.blocks if isinstance(b, message_body.ToolUseBlock)]
        results = [
            b.tool_use_id for b in turn.blocks if isinstance(b, message_body.ToolResultBlock)
        ]
        if (calls and turn.role != "assistant") or (results and turn.role != "user"):
            raise InvalidRequestError(f"unexpected tool block in a {turn.role} turn", place)
        if (calls or results) and not tools:
            raise InvalidRequestError(
                "Requests which include `tool_use` or `tool_result` blocks must define tools",
                place,
            )
        _check_results(turn, waiting, results, place)
        if len(used | {*calls}) < len(used) + len(calls):
            raise InvalidRequestError("`tool_use` ids must be unique", place)
        used |= {*calls}
        waiting = calls
    if waiting:
        raise _missing(waiting, f"messages.{len(turns) - 1}")
    _check_roles([turn.role for turn in turns])


def _check_roles(roles: Sequence[str]) -> None:
    """Hold turns to whose they may be. Raises ``InvalidRequestError``."""
    talking = [role for role in roles if role != "system"]
    for role, after in itertools.pairwise(talking):
        # Anthropic itself merges neighbours by now; imitators refuse them, and so does this.
        if role == after:
            raise InvalidRequestError(
                f'roles must alternate between "user" and "assistant", but found multiple "{role}" roles in a row',
                "messages",
            )


def _check_results(
    turn: ScriptedTurn, waiting: Sequence[str], results: Sequence[str], place: str
) -> None:
    """Hold a turn to the calls before it: all their results, once each, and first."""
    for j, result in enumerate(results):
        if result not in waiting:
            raise InvalidRequestError(
                f"unexpected `tool_use_id` found in `tool_result` blocks: {result}. Each `tool_result` block must "
                "have a corresponding `tool_use` block in the previous message.",
                f"{place}.content.{j}",
            )
    if len({*results}) < len(results):
        raise InvalidRequestError("each tool_use must have a single result", place)
    missing = [call for call in waiting if call not in results]
    first = turn.blocks[: len(results)]
    if missing or any(not isinstance(block, message_body.ToolResultBlock) for block in first):
        raise _missing(missing or waiting, place)


def _missing(calls: Sequence[str], place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"`tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(calls)}. Each "
        "`tool_use` block must have a corresponding `tool_result` block in the next message.",
        place,
    )
