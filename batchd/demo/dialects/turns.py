"""What Anthropic's Messages demands of a request: its parameters, the order of its blocks, and its signatures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from batchd.demo import families, opaque
from batchd.demo.dialects import blocks, schemas
from batchd.demo.dialects.blocks import Block, Body, Cache, Redacted, Segment, Text, Thinking, Turn
from batchd.demo.families import Family
from batchd.demo.opaque import Seal
from batchd.demo.request import InvalidRequestError

#: What was said of versions so far: the first takes sampling parameters, the second does not.
_VERSIONS = ("2023-06-01", "2026-10-21")
_MOST_BREAKPOINTS = 4
_LEAST_BUDGET = 1024
_SIGNATURE = "Invalid `signature` in `thinking` block."


def check(body: Body, family: Family, headers: Mapping[str, str]) -> None:
    """Hold a request's parameters to what its model takes. Raises ``InvalidRequestError``."""
    version = headers.get("anthropic-version")
    if version is None:
        raise InvalidRequestError("header is required", "anthropic-version")
    if version not in _VERSIONS:
        raise InvalidRequestError(f'"{version}" is not a valid version', "anthropic-version")
    for field in ("temperature", "top_p", "top_k"):
        if version != _VERSIONS[0] and getattr(body, field) is not None:
            raise InvalidRequestError("Extra inputs are not permitted", field)
    if body.max_tokens < 1:
        raise InvalidRequestError("Input should be greater than or equal to 1", "max_tokens")
    _check_output(body, family)
    _check_thinking(body, family)
    choice = body.tool_choice.type if body.tool_choice else "auto"
    if choice in {"any", "tool"} and not family.forced:
        raise InvalidRequestError(
            "Forcing a tool is not supported with this model: use auto or none", "tool_choice.type"
        )
    if choice != "auto" and not body.tools:
        raise InvalidRequestError("may only be specified while providing tools", "tool_choice")


def _check_output(body: Body, family: Family) -> None:
    config = body.output_config
    if config is None:
        return
    if config.effort is not None and config.effort not in family.efforts:
        takes = ", ".join(f"'{e}'" for e in families.EFFORTS if e in family.efforts)
        raise InvalidRequestError(f"Input should be {takes}", "output_config.effort")
    if config.format is not None:
        for _, part in schemas.objects(config.format.schema):
            if part.get("additionalProperties") is not False:
                raise InvalidRequestError(
                    "For 'object' type, 'additionalProperties' must be explicitly set to false",
                    "output_config.format.schema",
                )


def _check_thinking(body: Body, family: Family) -> None:
    thinking = body.thinking
    if thinking is None:
        return
    if thinking.type not in family.thinking:
        raise InvalidRequestError(
            f"'{thinking.type}' is not supported with this model", "thinking.type"
        )
    effort = (body.output_config and body.output_config.effort) or family.effort
    at = families.EFFORTS.index
    if thinking.type == "disabled" and at(effort) > at(family.disabled_to):
        raise InvalidRequestError(
            f"'disabled' is not supported with effort above {family.disabled_to}", "thinking.type"
        )
    budget = thinking.budget_tokens
    if (budget is None) == (thinking.type == "enabled"):
        text = "Field required" if budget is None else "Extra inputs are not permitted"
        raise InvalidRequestError(text, "thinking.budget_tokens")
    if budget is not None and not _LEAST_BUDGET <= budget < body.max_tokens:
        raise InvalidRequestError(
            "must be at least 1024, and `max_tokens` must be greater than it",
            "thinking.budget_tokens",
        )


def read(body: Body, family: Family, owner: Seal) -> blocks.Read:
    """Return the prompt of a request.

    ``owner`` is the seal that the answer is going to have, but for its prefix. Raises ``InvalidRequestError``.
    """
    prompt = _Prompt(family, owner)
    for tool in body.tools or ():
        prompt.add(tool, canonical(msgspec.json.encode(tool)), tool.cache_control)
    system = [Text(body.system)] if isinstance(body.system, str) else body.system or []
    for text in system:
        prompt.add(text, canonical(msgspec.json.encode(text)), text.cache_control)
    found = []
    for i, message in enumerate(body.messages):
        prompt.open(message.role)
        found.append(Turn(message.role, [*_blocks(prompt, message, f"messages.{i}")]))
    _check_order(found, prompt, family, tools=bool(body.tools))
    return prompt.read(found, body.cache_control)


def _blocks(prompt: _Prompt, message: blocks.Message, place: str) -> Sequence[Block]:
    """Return the blocks of a message, and add them to the prompt."""
    content = message.content
    whole = isinstance(content, str)
    raws = [msgspec.json.encode(Text(content))] if isinstance(content, str) else map(bytes, content)
    found = []
    for j, raw in enumerate(raws):
        at = place if whole else f"{place}.content.{j}"
        block = blocks.block(raw, at)
        if isinstance(block, Thinking | Redacted):
            if message.role != "assistant":
                raise InvalidRequestError(
                    f"Unexpected `{_tag(block)}` block in a {message.role} turn", at
                )
            prompt.think(block, raw, at)
        else:
            if isinstance(block, Text) and not block.text.strip():
                raise InvalidRequestError("text content blocks must be non-empty", at)
            prompt.add(block, canonical(raw), block.cache_control)
        found.append(block)
    if not found:
        raise InvalidRequestError("all messages must have non-empty content", place)
    return found


def _tag(block: Block) -> str:
    return str(block.__struct_config__.tag)


def canonical(raw: bytes) -> bytes:
    """Return JSON as it is told apart: without its spaces, the order of its fields, and its marks for the cache."""
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
        self._append(blocks.Head(), role.encode())

    def add(self, segment: Segment, raw: bytes, cache: Cache | None) -> None:
        """Take a segment in, in its canonical form."""
        self._append(segment, raw)
        self._prefix = opaque.digest(self._prefix.encode(), self._role.encode(), raw)
        if cache is not None:
            self._breakpoints.append((len(self._segments) - 1, cache.ttl))

    def _append(self, segment: Segment, raw: bytes) -> None:
        self._segments.append(segment)
        self._raws.append(raw)

    def think(self, block: Thinking | Redacted, raw: bytes, place: str) -> None:
        """Take thinking in that came back. Raises ``InvalidRequestError`` where it is not as it was."""
        signed = block.signature if isinstance(block, Thinking) else block.data
        text = block.thinking if isinstance(block, Thinking) else ""
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
            self._append(blocks.Thought(seal), canon)
        else:
            self._removed += 1

    def read(self, turns: Sequence[Turn], cache: Cache | None) -> blocks.Read:
        """Return what was put together; ``cache`` asks for a breakpoint at its end."""
        last = len(self._segments) - 1
        if cache is not None and (not self._breakpoints or self._breakpoints[-1][0] != last):
            self._breakpoints.append((last, cache.ttl))
        if len(self._breakpoints) > _MOST_BREAKPOINTS:
            raise InvalidRequestError(
                "A maximum of 4 blocks with cache_control may be provided. Found "
                f"{len(self._breakpoints)}."
            )
        lifetimes = [ttl for _, ttl in self._breakpoints]
        if "5m" in lifetimes and "1h" in lifetimes[lifetimes.index("5m") :]:
            raise InvalidRequestError(
                "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
            )
        return blocks.Read(
            turns,
            self._segments,
            self._raws,
            self._breakpoints,
            self._prefix,
            self._opaque,
            self._removed,
        )


def _check_order(turns: Sequence[Turn], prompt: _Prompt, family: Family, *, tools: bool) -> None:
    """Hold turns and calls to the order that they must have. Raises ``InvalidRequestError``."""
    _check_roles([turn.role for turn in turns])
    waiting: list[str] = []
    used: set[str] = set()
    for i, turn in enumerate(turns):
        place = f"messages.{i}"
        calls = [b.id for b in turn.blocks if isinstance(b, blocks.ToolUse)]
        results = [b.tool_use_id for b in turn.blocks if isinstance(b, blocks.ToolResult)]
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
    if turns[-1].role == "assistant" and not family.prefill and not prompt.paused:
        raise InvalidRequestError(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


def _check_roles(roles: Sequence[str]) -> None:
    """Hold turns to whose they may be. Raises ``InvalidRequestError``."""
    if not roles:
        raise InvalidRequestError("at least one message is required", "messages")
    if roles[0] != "user":
        raise InvalidRequestError("first message must use the user role", "messages")
    talking = [role for role in roles if role != "system"]
    for role, after in itertools.pairwise(talking):
        # Anthropic itself merges neighbours by now; imitators refuse them, and so does this.
        if role == after:
            raise InvalidRequestError(
                f'roles must alternate between "user" and "assistant", but found multiple "{role}" roles in a row',
                "messages",
            )


def _check_results(turn: Turn, waiting: Sequence[str], results: Sequence[str], place: str) -> None:
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
    if missing or any(not isinstance(block, blocks.ToolResult) for block in first):
        raise _missing(missing or waiting, place)


def _missing(calls: Sequence[str], place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"`tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(calls)}. Each "
        "`tool_use` block must have a corresponding `tool_result` block in the next message.",
        place,
    )
