"""OpenAI's Responses: requests in full each time, reasoning sealed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from batchd import decoders
from standin import families, opaque
from standin.dialects import openai, replay, schema_rules
from standin.dialects.items import MoreTools
from standin.dialects.openai import error, headers, invalid, key, models
from standin.dialects.response_answers import ResponsesWriter
from standin.dialects.response_body import Caching, ResponsesBody, TextConfig
from standin.families import Family
from standin.faults import Fault, HttpRefusal
from standin.opaque import Seal
from standin.simulated_request import (
    CacheRules,
    Caller,
    InvalidRequestError,
    SimulatedRequest,
    prompt_of,
    purpose,
)

__all__ = ["error", "headers", "invalid", "key", "models", "name", "nothing", "parse", "refusal"]
name = "responses"
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "object": "response", "status": "completed", "output": []}'

#: Seconds that what was written to the cache stays there.
_TTL: Mapping[str, int] = {"30m": 1800, "12h": 43200}
_MOST_BREAKPOINTS = 4
_LEAST_OUTPUT = 16
_LONGEST_USER = 128
_encode = msgspec.json.Encoder().encode


_BODY = decoders.decoder(ResponsesBody).decode
_RAWS = decoders.decoder(str | list[msgspec.Raw]).decode


def parse(data: bytes, caller: Caller) -> SimulatedRequest:
    """Return the request in a body. Raises ``InvalidRequestError`` where OpenAI would refuse it."""
    try:
        body = _BODY(data)
        given = _RAWS(body.input)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise openai.unreadable(exc) from exc
    family = families.of(body.model) or families.RESPONSES
    effort = _check(body, family)
    owner = _owner(body, caller)
    read = replay.read(_messages(given), family, owner)
    _check_breakpoints(len(read.breakpoints))
    tools = _encode(body.tools) if body.tools else b""
    native = bool(tools) or any(isinstance(item, MoreTools) for item in read.items)
    first = next((i.text for i in read.items if i.role == "user"), "")
    form = (body.text and body.text.format) or {}
    return SimulatedRequest(
        model=body.model,
        family=family,
        turns=read.items,
        segments=read.items,
        raws=read.raws,
        first_user=prompt_of(first),
        purpose=purpose(read.items, native=native, bound=form.get("type") == "json_schema"),
        turn=read.answers,
        schemas=tools + (body.instructions or "").encode(),
        native=native,
        max_output=body.max_output_tokens or 0,
        tier=openai.tier(family, body.service_tier),
        cache=_cache(body, family, read, effort, caller),
        removed=len(read.removed),
        opaque=read.opaque,
        thinks=effort != "none",
        account=caller.account,
        writer=ResponsesWriter(
            body, msgspec.structs.replace(owner, prefix=read.prefix), read.removed, effort
        ),
    )


def _owner(body: ResponsesBody, caller: Caller) -> Seal:
    """Return the seal that an answer is going to have, but for what stands in the input."""
    return Seal(
        model=body.model,
        account=caller.account,
        user=body.safety_identifier or body.user or "",
        prefix=_foundation(body),
        beside="",
        tokens=0,
    )


def _check_breakpoints(count: int) -> None:
    if count > _MOST_BREAKPOINTS:
        raise InvalidRequestError(
            f"Too many prompt cache breakpoints: at most 4 are allowed, found {count}.", "input"
        )


def _messages(given: str | list[msgspec.Raw]) -> list[bytes]:
    raws = [_encode({"role": "user", "content": given})] if isinstance(given, str) else given
    if not raws:
        raise InvalidRequestError("[] is too short - 'input'", "input", "empty_array")
    return [bytes(raw) for raw in raws]


def _foundation(body: ResponsesBody) -> str:
    """Return the hash of what stands before the input, and of what else must not change."""
    form = body.text.format if body.text else None
    return opaque.digest(msgspec.json.encode([body.tools, form], order="sorted"))


def _check(body: ResponsesBody, family: Family) -> str:
    """Hold a request's parameters to what its model takes, and return the effort that it has."""
    if body.previous_response_id or body.conversation or body.background:
        raise InvalidRequestError(
            "Previous responses, conversations and background are not kept by this server.",
            "previous_response_id",
        )
    if body.max_output_tokens is not None and body.max_output_tokens < _LEAST_OUTPUT:
        raise InvalidRequestError(
            f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got "
            f"{body.max_output_tokens} instead.",
            "max_output_tokens",
            "integer_below_min_value",
        )
    if len(body.safety_identifier or "") > _LONGEST_USER:
        raise InvalidRequestError(
            "Invalid 'safety_identifier': string too long. Expected a string with maximum length 128.",
            "safety_identifier",
            "string_above_max_length",
        )
    for i, tool in enumerate(body.tools or ()):
        if tool.strict:
            schema_rules.check_strict(
                tool.parameters, f"function '{tool.name}'", f"tools[{i}].parameters"
            )
    form = (body.text and body.text.format) or {"type": "text"}
    if form.get("type") == "json_schema":
        if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
            raise InvalidRequestError(
                "Missing required parameter: 'text.format.name'.",
                "text.format.name",
                "missing_required_parameter",
            )
        if form.get("strict"):
            schema_rules.check_strict(form["schema"], "response_format", "text.format.schema")
    sampling = {"temperature": body.temperature, "top_p": body.top_p}
    effort = body.reasoning.effort if body.reasoning else None
    return openai.check_model(family, body.model, effort, sampling, "reasoning.effort")


def _cache(
    body: ResponsesBody, family: Family, read: replay.ResponsesPrompt, effort: str, caller: Caller
) -> CacheRules:
    """Return how OpenAI caches this request: to its end, unless it says otherwise."""
    asked = body.prompt_cache_options or Caching()
    marks = {at: _TTL[ttl] for at, ttl in read.breakpoints if at >= 0}
    if asked.mode == "implicit" and read.items:
        marks[len(read.items) - 1] = _TTL[asked.ttl]
    text = body.text or TextConfig()
    return CacheRules(
        scope=(
            *(caller.account, body.model, body.prompt_cache_key, effort, body.service_tier),
            *(_encode(text.format), text.verbosity),
        ),
        breakpoints=tuple(sorted(marks.items())),
        minimum=family.cache_minimum,
        billed=family.writes,
        long_s=_TTL["12h"],
    )


def refusal(fault: Fault) -> HttpRefusal:
    """Return a fault in OpenAI's words; of what is too long, Responses names no number."""
    if fault.window or fault.name == "context-overflow":
        return HttpRefusal(
            400,
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            openai.INVALID,
            "context_length_exceeded",
            "input",
        )
    if fault.name in {"503", "529"}:
        return HttpRefusal(
            503,
            "Our servers are currently overloaded. Please try again later.",
            "server_error",
            "server_is_overloaded",
        )
    return openai.refusal(fault)
