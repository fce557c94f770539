"""OpenAI's Responses: requests in full each time, items in their order, reasoning sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from batchd import decoders, tokens
from batchd.records import Answer, Usage
from standin import families, faults, opaque
from standin.dialects import openai
from standin.dialects.openai import error, headers, invalid, key, models
from standin.families import Family
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
    ended,
    escaped,
    prompt_of,
    purpose,
    weigh,
)

__all__ = ["error", "headers", "invalid", "key", "models", "name", "nothing", "parse", "words"]
name = "responses"
words = faults.RESPONSES
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "object": "response", "status": "completed", "output": []}'
_LEAST_OUTPUT = 16
_encode = msgspec.json.Encoder().encode


class _Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None


class _Text(msgspec.Struct, frozen=True):
    format: dict[str, Any] = {}


class _Body(msgspec.Struct):
    model: str
    #: As it came: its bytes name it in the prompt cache.
    input: msgspec.Raw
    instructions: str | None = None
    tools: list[dict[str, Any]] = []
    max_output_tokens: int | None = None
    reasoning: _Reasoning = _Reasoning()
    text: _Text = _Text()
    prompt_cache_key: str | None = None
    service_tier: str | None = None


class _Part(msgspec.Struct):
    text: str = ""
    refusal: str = ""


class Item(msgspec.Struct):
    """An item of any kind; what is of another kind is empty."""

    type: str = "message"
    #: Of what is no message, whose it is all the same: ``assistant`` or ``tool``.
    role: str = ""
    id: str | None = None
    content: str | list[_Part] | None = None
    summary: list[Any] = []
    encrypted_content: str | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[_Part] = ""
    #: The tokens that were thought, where it holds some.
    thought: int = 0

    @property
    def text(self) -> str:
        """What it says."""
        said = self.output or self.content or ""
        return said if isinstance(said, str) else "".join(p.text or p.refusal for p in said)

    @property
    def stem(self) -> str:
        """What the ids of an answer's items share; it says whether there was reasoning in it."""
        return (self.id or "").partition("_")[2].partition(".")[0]

    def weight(self) -> int:
        """Return its tokens."""
        match self.type:
            case "reasoning":
                return self.thought
            case "function_call":
                return weigh(self.name) + weigh(self.arguments) + tokens.TOOL_CALL_TOKENS
        return tokens.MESSAGE_TOKENS + weigh(self.text)


#: The kinds of items, and whose they are where they do not say it.
_ROLES = {"message": "", "reasoning": "assistant"}
_ROLES |= {"function_call": "assistant", "function_call_output": "tool"}
_BODY = decoders.decoder(_Body).decode
_INPUT = decoders.decoder(str | list[msgspec.Raw]).decode
_ITEM = decoders.decoder(Item).decode


def parse(data: bytes, caller: Caller) -> SimulatedRequest:
    """Return the request in a body. Raises ``InvalidRequestError`` where OpenAI would refuse it."""
    try:
        body = _BODY(data)
        given = _INPUT(body.input)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise openai.unreadable(exc) from exc
    if not given:
        raise InvalidRequestError("[] is too short - 'input'", "input", "empty_array")
    if isinstance(given, str):
        given = [msgspec.Raw(_encode({"role": "user", "content": given}))]
    family = families.of(body.model) or families.RESPONSES
    effort = body.reasoning.effort or "medium"
    form = body.text.format
    _check(body, family)
    # What stands before the input, and what else must not change.
    foundation = opaque.digest(msgspec.json.encode([body.tools, form], order="sorted"))
    owner = Seal(body.model, caller.account, prefix=foundation, beside="", tokens=0)
    read = _read([bytes(raw) for raw in given], family, owner)
    tools = _encode(body.tools) if body.tools else b""
    return SimulatedRequest(
        model=body.model,
        family=family,
        turns=read.items,
        segments=read.items,
        raws=read.raws,
        first_user=prompt_of(next((i.text for i in read.items if i.role == "user"), "")),
        purpose=purpose(read.items, native=bool(tools), bound=form.get("type") == "json_schema"),
        turn=read.answers,
        schemas=tools + (body.instructions or "").encode(),
        native=bool(tools),
        max_output=body.max_output_tokens or 0,
        tier=openai.tier(body.service_tier),
        # To the end of what is sent.
        cache=CacheRules(
            scope=(
                *(caller.account, body.model, body.prompt_cache_key),
                *(effort, body.service_tier, _encode(form)),
            ),
            breakpoints=(len(read.items) - 1,) if read.items else (),
            minimum=family.cache_minimum,
            billed=family.writes,
        ),
        removed=len(read.removed),
        opaque=read.opaque,
        thinks=effort != "none",
        account=caller.account,
        writer=_Writer(body, replace(owner, prefix=read.prefix), read.removed, effort),
    )


def _check(body: _Body, family: Family) -> None:
    """Hold a request's parameters to what its model takes. Raises ``InvalidRequestError``."""
    if body.max_output_tokens is not None and body.max_output_tokens < _LEAST_OUTPUT:
        raise InvalidRequestError(
            f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got "
            f"{body.max_output_tokens} instead.",
            "max_output_tokens",
            "integer_below_min_value",
        )
    for i, tool in enumerate(body.tools):
        # Held to it, where nothing else is said.
        if tool.get("strict", True):
            of = f"function '{tool.get('name')}'"
            openai.check_strict(tool.get("parameters") or {}, of, f"tools[{i}].parameters")
    form = body.text.format
    if form.get("type") == "json_schema":
        if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
            raise InvalidRequestError(
                "Missing required parameter: 'text.format.name'.",
                "text.format.name",
                "missing_required_parameter",
            )
        if form.get("strict"):
            openai.check_strict(form["schema"], "response_format", "text.format.schema")
    openai.check_effort(family, body.reasoning.effort, "reasoning.effort")


@dataclass(frozen=True, slots=True)
class _Removal:
    """A reasoning item that was left out, and why."""

    id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The input of a request, as the model sees it."""

    items: Sequence[Item]
    raws: Sequence[bytes]
    removed: Sequence[_Removal]
    #: The hash of all that was sent.
    prefix: str
    #: How many answers are in it, and how many opaque items came back.
    answers: int
    opaque: int


def _read(raws: Sequence[bytes], family: Family, owner: Seal) -> _Prompt:
    """Return the items of an input, from their bytes.

    ``owner`` is the seal that the answer is going to have, but for its prefix, which is that of
    what stands before the items. Raises ``InvalidRequestError``.
    """
    given = [_item(raw, f"input[{i}]") for i, raw in enumerate(raws)]
    _check_order(given)
    _check_calls(given)
    found: list[Item] = []
    kept: list[bytes] = []
    removed: list[_Removal] = []
    prefix, answers, within, sealed = owner.prefix, 0, False, 0
    for item, raw in zip(given, raws, strict=True):
        said = item.role == "assistant"
        answers += said and not within
        within = said
        reason, canon = "", opaque.canonical(raw)
        if item.type == "reasoning":
            seal = _opened(item)
            sealed += 1
            reason = _mismatch(seal, family, owner, prefix)
            item.thought = seal.tokens
        if reason:
            removed.append(_Removal(item.id, reason))
        else:
            found.append(item)
            kept.append(canon)
        prefix = opaque.digest(prefix.encode(), canon)
    return _Prompt(found, kept, removed, prefix, answers, sealed)


def _item(raw: bytes, place: str) -> Item:
    """Return an item from its bytes. Raises ``InvalidRequestError``."""
    try:
        item = _ITEM(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise openai.unreadable(exc, place) from exc
    if item.type not in _ROLES:
        known = ", ".join(f"'{kind}'" for kind in _ROLES)
        wrong = f"Invalid value: '{item.type}'. Supported values are: {known}."
        raise InvalidRequestError(wrong, f"{place}.type", "invalid_value")
    item.role = item.role or _ROLES[item.type]
    return item


def _check_order(given: Sequence[Item]) -> None:
    """Hold items to what must stand beside them. Raises ``InvalidRequestError``."""
    thought = {item.stem for item in given if item.type == "reasoning"}
    for item, after in zip(given, [*given[1:], Item()], strict=True):
        if item.type == "reasoning" and after.role != "assistant":
            raise InvalidRequestError(
                f"Item '{item.id}' of type 'reasoning' was provided without its required following item.",
                "input",
            )
        if item.stem.endswith("t") and item.stem not in thought:
            raise InvalidRequestError(
                f"Item '{item.id}' of type '{item.type}' was provided without its required 'reasoning' item: "
                f"'rs_{item.stem}'.",
                "input",
            )


def _check_calls(given: Sequence[Item]) -> None:
    """Hold calls to their outputs: one each, behind it. Raises ``InvalidRequestError``."""
    called: set[str] = set()
    waiting: dict[str, None] = {}
    for item in given:
        if item.type == "function_call":
            if item.call_id in called:
                raise InvalidRequestError(f"Duplicate call_id: {item.call_id}.", "input")
            called.add(item.call_id)
            waiting[item.call_id] = None
        elif item.type == "function_call_output":
            if item.call_id not in waiting:
                raise InvalidRequestError(
                    f"No tool call found for function call output with call_id {item.call_id}.",
                    "input",
                )
            del waiting[item.call_id]
    for call in waiting:
        raise InvalidRequestError(f"No tool output found for function call {call}.", "input")


def _opened(item: Item) -> Seal:
    """Return the seal of a reasoning item. Raises ``InvalidRequestError`` where it is damaged."""
    if not item.encrypted_content:
        raise InvalidRequestError(
            f"Item with id '{item.id}' not found. Items are not persisted when `store` is set to false. Try again "
            "with `store` set to true, or remove this item from your input.",
            "input",
        )
    seal = opaque.opened(item.encrypted_content)
    if seal is None or seal.beside != opaque.digest(_encode([item.id, item.summary])):
        raise _unverified(item.id or "")
    return seal


def _unverified(item_id: str) -> InvalidRequestError:
    """Return the refusal of an item that is damaged, or somebody else's."""
    return InvalidRequestError(
        f"The encrypted content for item {item_id} could not be verified. Reason: Encrypted content could not be "
        "decrypted or parsed.",
        "input",
        "invalid_encrypted_content",
    )


def _mismatch(seal: Seal, family: Family, owner: Seal, prefix: str) -> str:
    """Return why an item is left out, if it is.

    Raises ``InvalidRequestError`` where its model refuses it instead.
    """
    reason = ""
    if seal.account != owner.account:
        reason = "organization_mismatch"
    elif seal.model != owner.model:
        reason = "model_mismatch"
    if family.removes:
        return reason or ("prefix_mismatch" if seal.prefix != prefix else "")
    if reason:
        raise _unverified("of another " + reason.partition("_")[0])
    return ""


_INCOMPLETE: Mapping[AnswerEnd, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the answer to one request."""

    body: _Body
    #: Whose its reasoning is to be.
    owner: Seal
    removed: Sequence[_Removal]
    effort: str

    def whole(self, heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        reason = _INCOMPLETE.get(end(answer))
        failed = end(answer) == "failed"
        removed = [
            {"id": r.id, "action": "removed", "reason": r.reason, "type": "reasoning"}
            for r in self.removed
        ]
        wrong = {"code": "server_error", "message": "The model failed to generate a response."}
        response = {
            "id": f"resp_{heading.id}",
            "object": "response",
            "created_at": heading.created,
            "status": "failed" if failed else "incomplete" if reason else "completed",
            "error": wrong if failed else None,
            "incomplete_details": {"reason": reason} if reason else None,
            "input_transformations": removed or None,
            "model": heading.model,
            "output": [] if failed else self._output(heading, answer),
            "parallel_tool_calls": True,
            "reasoning": {"effort": self.effort, "summary": None},
            "service_tier": bill.tier if bill else "default",
            "tool_choice": "auto",
            "tools": self.body.tools,
        }
        if bill is not None:
            response["usage"] = _usage(bill.usage)
        return escaped(_encode(response))

    def failed(self, heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error."""
        return self.whole(heading, ended("", "failed"), None)

    def _output(self, heading: Heading, answer: Answer) -> list[dict[str, Any]]:
        stem = f"{heading.id}{'t' if answer.reasoning else 'n'}"
        cut = end(answer) in _INCOMPLETE
        status = "incomplete" if cut else "completed"
        found: list[dict[str, Any]] = []
        if answer.reasoning:
            found.append(self._reasoning(f"rs_{stem}", heading))
        if answer.content or (not answer.tool_calls and not cut):
            part = {"type": "output_text", "text": answer.content, "annotations": []}
            if end(answer) == "refusal":
                part = {"type": "refusal", "refusal": answer.content}
            found.append(
                {
                    "id": f"msg_{stem}",
                    "type": "message",
                    "role": "assistant",
                    "status": status,
                    "phase": "commentary" if answer.tool_calls else "final_answer",
                    "content": [part],
                }
            )
        found += (
            {
                "id": f"fc_{stem}.{i}",
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": status,
            }
            for i, call in enumerate(answer.tool_calls)
        )
        return found

    def _reasoning(self, item_id: str, heading: Heading) -> dict[str, Any]:
        seal = replace(
            self.owner,
            beside=opaque.digest(_encode([item_id, []])),
            tokens=heading.thought_tokens,
        )
        return {
            "id": item_id,
            "type": "reasoning",
            "summary": [],
            "encrypted_content": opaque.sealed(seal, heading.sealed_size),
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
