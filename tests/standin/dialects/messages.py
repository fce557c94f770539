"""Anthropic's Messages: turns of blocks, thinking signed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from batchd import decoders, tokens
from batchd.records import Answer
from standin import families, faults, opaque
from standin.dialects import openai
from standin.families import Family
from standin.faults import HttpRefusal
from standin.limiter import Limit
from standin.opaque import Seal
from standin.simulated_request import (
    AnswerEnd,
    Bill,
    CacheRules,
    Caller,
    Heading,
    InvalidRequestError,
    SimulatedRequest,
    end,
    escaped,
    prompt_of,
    purpose,
    weigh,
)

name = "messages"
words = faults.MESSAGES
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "type": "message", "role": "assistant", "content": []}'
_VERSION = "2023-06-01"
_LOOKBACK = 20
_MOST_BREAKPOINTS = 4
_SIGNATURE = "Invalid `signature` in `thinking` block."
_encode = msgspec.json.Encoder().encode


class _Thinking(msgspec.Struct):
    type: str


class _Format(msgspec.Struct):
    schema: dict[str, Any]


class _Output(msgspec.Struct, frozen=True):
    effort: str | None = None
    format: _Format | None = None


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    #: As it came: its bytes name it in the prompt cache.
    content: str | list[msgspec.Raw]


class _Body(msgspec.Struct):
    model: str
    max_tokens: int
    messages: list[_Message]
    system: str | list[msgspec.Raw] = []
    tools: list[msgspec.Raw] = []
    thinking: _Thinking | None = None
    output_config: _Output = _Output()
    cache_control: dict[str, str] | None = None
    stop_sequences: list[str] = []


class Tool(msgspec.Struct):
    """A tool that is offered."""

    name: str
    input_schema: msgspec.Raw
    description: str = ""
    cache_control: dict[str, str] | None = None

    def weight(self) -> int:
        """Return its tokens."""
        return weigh(_encode((self.name, self.description, self.input_schema)).decode())


class Block(msgspec.Struct):
    """A block of any kind; what is of another kind is empty."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw()
    tool_use_id: str = ""
    content: str | list[Block] = ""
    thinking: str = ""
    signature: str = ""
    cache_control: dict[str, str] | None = None
    #: The tokens that were thought, where it holds some.
    thought: int = 0

    def weight(self) -> int:
        """Return its tokens."""
        match self.type:
            case "text":
                return weigh(self.text)
            case "thinking":
                return self.thought
            case "tool_use":
                return (
                    weigh(self.name) + weigh(bytes(self.input).decode()) + tokens.TOOL_CALL_TOKENS
                )
        said = self.content
        text = said if isinstance(said, str) else "".join(block.text for block in said)
        return tokens.MESSAGE_TOKENS + weigh(text)


#: Stands before the blocks of a message.
_HEAD = Block("head")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, or a part of one, with whose it is."""

    role: str
    blocks: Sequence[Block]

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(block.text for block in self.blocks)


_BODY = decoders.decoder(_Body).decode
_TOOL = decoders.decoder(Tool).decode
_BLOCK = decoders.decoder(Block).decode


def parse(data: bytes, caller: Caller) -> SimulatedRequest:
    """Return the request in a body.

    Raises ``InvalidRequestError`` where Anthropic would refuse it.
    """
    try:
        body = _BODY(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise _unreadable(exc) from exc
    family = families.of(body.model) or families.MESSAGES
    _check(body, family, caller.headers)
    owner = Seal(body.model, caller.account, prefix="", beside="", tokens=0)
    prompt = _Prompt(body, owner)
    native = bool(body.tools)
    turns = [*prompt.heard()]
    return SimulatedRequest(
        model=body.model,
        family=family,
        turns=turns,
        segments=prompt.segments,
        raws=prompt.raws,
        first_user=prompt_of(next((t.text for t in turns if t.role == "user"), "")),
        purpose=purpose(turns, native=native, bound=body.output_config.format is not None),
        turn=sum(t.role == "assistant" for t in turns),
        native=native,
        stop=body.stop_sequences,
        max_output=body.max_tokens,
        cache=CacheRules(
            scope=(caller.account, body.model),
            breakpoints=tuple(prompt.breakpoints),
            minimum=family.cache_minimum,
            lookback=_LOOKBACK,
        ),
        opaque=prompt.opaque,
        thinks=body.thinking is None or body.thinking.type != "disabled",
        account=caller.account,
        writer=_Writer(replace(owner, prefix=prompt.prefix)),
    )


def _check(body: _Body, family: Family, headers: Mapping[str, str]) -> None:
    """Hold a request's parameters to what its model takes. Raises ``InvalidRequestError``."""
    version = headers.get("anthropic-version")
    if version != _VERSION:
        wrong = "header is required" if version is None else f'"{version}" is not a valid version'
        raise InvalidRequestError(wrong, "anthropic-version")
    config = body.output_config
    if config.effort is not None and config.effort not in family.efforts:
        takes = ", ".join(f"'{e}'" for e in sorted(family.efforts))
        raise InvalidRequestError(f"Input should be {takes}", "output_config.effort")
    for _, part in openai.objects(config.format.schema if config.format else {}):
        if part.get("additionalProperties") is not False:
            raise InvalidRequestError(
                "For 'object' type, 'additionalProperties' must be explicitly set to false",
                "output_config.format.schema",
            )
    if body.thinking is not None and body.thinking.type not in family.thinking:
        raise InvalidRequestError(
            f"'{body.thinking.type}' is not supported with this model", "thinking.type"
        )


class _Prompt:
    """The prompt of a request, as the model sees it: tools, system, messages.

    ``owner`` is the seal that the answer is going to have, but for its prefix. Raises
    ``InvalidRequestError`` where what comes back is not in order, or not as it was.
    """

    def __init__(self, body: _Body, owner: Seal) -> None:
        self._owner = owner
        self.segments: list[Tool | Block] = []
        self.raws: list[bytes] = []
        #: The segments that end with a breakpoint.
        self.breakpoints: list[int] = []
        #: The hash of all that was sent.
        self.prefix = ""
        #: How many opaque blocks came back.
        self.opaque = 0
        self._role = ""
        for raw in body.tools:
            self._add(_TOOL(raw), bytes(raw))
        given = body.system
        system = [_text(given)] if isinstance(given, str) else [bytes(raw) for raw in given]
        self._system = [_block(raw, "system") for raw in system]
        for block, raw in zip(self._system, system, strict=True):
            self._add(block, raw)
        spoken = [[*_blocks(m, f"messages.{i}")] for i, m in enumerate(body.messages)]
        self._turns = [
            Turn(m.role, [block for block, _ in said])
            for m, said in zip(body.messages, spoken, strict=True)
        ]
        _check_order(self._turns, tools=bool(body.tools))
        parts = [*self.segments, *(block for turn in self._turns for block in turn.blocks), body]
        marked = sum(part.cache_control is not None for part in parts)
        if marked > _MOST_BREAKPOINTS:
            raise InvalidRequestError(
                f"A maximum of 4 blocks with cache_control may be provided. Found {marked}."
            )
        for i, said in enumerate(spoken):
            self._role = body.messages[i].role
            self.segments.append(_HEAD)
            self.raws.append(self._role.encode())
            for j, (block, raw) in enumerate(said):
                if block.type == "thinking":
                    self._open(block, f"messages.{i}.content.{j}")
                self._add(block, raw)
            if said[-1][0].type == "thinking":
                raise InvalidRequestError(
                    "The final block in an assistant message cannot be `thinking`.",
                    f"messages.{i}",
                )
        if body.cache_control is not None:
            self.breakpoints.append(len(self.segments) - 1)
        _check_end(
            self._turns, budget=body.thinking is not None and body.thinking.type == "enabled"
        )

    def _add(self, segment: Tool | Block, raw: bytes) -> None:
        canon = opaque.canonical(raw)
        self.segments.append(segment)
        self.raws.append(canon)
        self.prefix = opaque.digest(self.prefix.encode(), self._role.encode(), canon)
        if segment.cache_control is not None:
            self.breakpoints.append(len(self.segments) - 1)

    def _open(self, block: Block, place: str) -> None:
        """Take thinking in that came back."""
        self.opaque += 1
        seal = opaque.opened(block.signature)
        text = block.thinking.encode("utf-8", "replace")
        if seal is None or seal.beside != opaque.digest(text):
            raise InvalidRequestError(_SIGNATURE, place)
        if (seal.model, seal.prefix) != (self._owner.model, self.prefix):
            raise InvalidRequestError(
                f"{_SIGNATURE} The block is bound to a different conversation, and cannot be used in this one.",
                place,
            )
        if seal.account != self._owner.account:
            raise InvalidRequestError(
                f"{_SIGNATURE} The block is bound to a different organization.", place
            )
        block.thought = seal.tokens

    def heard(self) -> Iterator[Turn]:
        """Yield the conversation as the scripts see it:
        each text of the user is a turn, as if nothing had been merged.
        """
        if self._system:
            yield Turn("system", self._system)
        for turn in self._turns:
            if turn.role == "assistant":
                yield turn
                continue
            for block in turn.blocks:
                yield Turn("tool" if block.type == "tool_result" else turn.role, [block])


def _text(said: str) -> bytes:
    return _encode({"type": "text", "text": said})


def _blocks(message: _Message, place: str) -> Iterator[tuple[Block, bytes]]:
    """Yield the blocks of a message, with their bytes. Raises ``InvalidRequestError``."""
    content = message.content
    if not content:
        raise InvalidRequestError("all messages must have non-empty content", place)
    raws = [_text(content)] if isinstance(content, str) else map(bytes, content)
    for j, raw in enumerate(raws):
        at = f"{place}.content.{j}"
        block = _block(raw, at)
        if block.type == "thinking" and message.role != "assistant":
            raise InvalidRequestError(f"Unexpected `thinking` block in a {message.role} turn", at)
        if block.type == "text" and not block.text.strip():
            raise InvalidRequestError("text content blocks must be non-empty", at)
        yield block, raw


def _block(raw: bytes, place: str) -> Block:
    try:
        return _BLOCK(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise _unreadable(exc, place) from exc


_MISSING = re.compile(r"missing required field `([^`]*)`")


def _unreadable(wrong: Exception, place: str = "") -> InvalidRequestError:
    found = _MISSING.search(str(wrong))
    if found is None:
        return InvalidRequestError(str(wrong), place or None)
    return InvalidRequestError("Field required", ".".join(filter(None, (place, found[1]))))


def _check_order(turns: Sequence[Turn], *, tools: bool) -> None:
    """Hold turns and calls to the order that they must have. Raises ``InvalidRequestError``."""
    if not turns:
        raise InvalidRequestError("at least one message is required", "messages")
    if turns[0].role != "user":
        raise InvalidRequestError("first message must use the user role", "messages")
    waiting: list[str] = []
    used: set[str] = set()
    role = ""
    for i, turn in enumerate(turns):
        place = f"messages.{i}"
        calls = [b.id for b in turn.blocks if b.type == "tool_use"]
        results = [b.tool_use_id for b in turn.blocks if b.type == "tool_result"]
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
        # Anthropic itself merges neighbours by now; imitators refuse them, and so does this.
        if turn.role == role:
            raise InvalidRequestError(
                f'roles must alternate between "user" and "assistant", but found multiple "{role}" roles in a row',
                "messages",
            )
        used |= {*calls}
        waiting, role = calls, turn.role
    if waiting:
        raise _missing(waiting, f"messages.{len(turns) - 1}")


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
    if missing or any(block.type != "tool_result" for block in turn.blocks[: len(results)]):
        raise _missing(missing or waiting, place)


def _missing(calls: Sequence[str], place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"`tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(calls)}. Each "
        "`tool_use` block must have a corresponding `tool_result` block in the next message.",
        place,
    )


def _check_end(turns: Sequence[Turn], *, budget: bool) -> None:
    """Hold a conversation to how it may end; ``budget``: where thinking has one.

    Raises ``InvalidRequestError``.
    """
    own = [(i, turn.blocks) for i, turn in enumerate(turns) if turn.role == "assistant"]
    if own and budget:
        i, blocks = own[-1]
        if blocks[0].type != "thinking" and any(block.type == "tool_use" for block in blocks):
            raise InvalidRequestError(
                f"Expected `thinking` or `redacted_thinking`, but found `{blocks[0].type}`. When `thinking` is "
                "enabled, a final `assistant` message must start with a thinking block (preceeding the lastmost "
                "set of `tool_use` and `tool_result` blocks).",
                f"messages.{i}.content.0.type",
            )
    if turns[-1].role == "assistant":
        raise InvalidRequestError(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


_STOPPED: Mapping[AnswerEnd, str] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
}


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the answer to one request."""

    #: Whose its thinking is to be.
    owner: Seal

    def whole(self, heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        reason = "stop_sequence" if heading.stopped else _STOPPED[end(answer)]
        refused = {"type": "refusal", "category": "cyber", "explanation": answer.content or None}
        body: dict[str, Any] = {
            "id": f"msg_{heading.id}",
            "type": "message",
            "role": "assistant",
            "model": heading.model,
            "content": self._content(heading, answer),
            "stop_reason": reason,
            "stop_sequence": heading.stopped or None,
            "stop_details": refused if reason == "refusal" else None,
        }
        if bill is not None:
            body["usage"] = _usage(bill)
        return escaped(_encode(body))

    def failed(self, heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error."""
        return error(words["error-200"], heading.id)

    def _content(self, heading: Heading, answer: Answer) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if answer.reasoning:
            beside = opaque.digest(answer.reasoning.encode())
            seal = replace(self.owner, beside=beside, tokens=heading.thought_tokens)
            signature = opaque.sealed(seal, heading.sealed_size)
            found.append({"type": "thinking", "thinking": answer.reasoning, "signature": signature})
        if answer.content and end(answer) != "refusal":
            found.append({"type": "text", "text": answer.content, "citations": None})
        found += (
            {
                "type": "tool_use",
                "id": f"toolu_{call.id}",
                "name": call.name,
                "input": _given(call.arguments),
            }
            for call in answer.tool_calls
        )
        return found


def _given(arguments: str) -> object:
    """Return a call's arguments as an object: a whole answer can hold nothing else."""
    try:
        return decoders.decode(arguments, dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _usage(bill: Bill) -> dict[str, Any]:
    """Return what an answer came to:
    the input is what neither came from the cache nor went there.
    """
    usage = bill.usage
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }


def invalid(wrong: InvalidRequestError) -> HttpRefusal:
    """Return what a request is refused with that is not in order."""
    place = f"{wrong.param}: " if wrong.param else ""
    return HttpRefusal(400, place + str(wrong), openai.INVALID, wrong.code)


def error(wrong: HttpRefusal, request_id: str = "") -> bytes:
    """Return an error body."""
    inside = {"type": wrong.type, "message": wrong.message}
    return _encode({"type": "error", "error": inside, "request_id": request_id or None})


def key(headers: Mapping[str, str]) -> str:
    """Return the key that a request was sent with."""
    return headers.get("x-api-key") or openai.key(headers)


def headers(limits: Iterable[Limit], account: str, request_id: str) -> dict[str, str]:
    """Return what goes with every answer."""
    found = {"anthropic-organization-id": account, "request-id": request_id}
    for limit in limits:
        whole = datetime.fromtimestamp(time.time() + limit.whole_s, UTC)
        found[f"anthropic-ratelimit-{limit.of}-limit"] = f"{limit.most:.0f}"
        found[f"anthropic-ratelimit-{limit.of}-remaining"] = str(limit.left)
        found[f"anthropic-ratelimit-{limit.of}-reset"] = f"{whole:%FT%TZ}"
    return found


def models(listed: Mapping[str, str]) -> object:
    """Return the list of models, from their names: one page."""
    shape = {"type": "model", "created_at": "2026-01-01T00:00:00Z"}
    data = [{"id": name, "display_name": name, **shape} for name in listed]
    names = [*listed]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}
