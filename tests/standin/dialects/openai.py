"""What OpenAI's two dialects share: errors, headers, the list of models, and what models take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from standin.families import Family
from standin.faults import HttpRefusal
from standin.limiter import Limit
from standin.simulated_request import InvalidRequestError

INVALID = "invalid_request_error"
#: How tiers are asked for, and what serves them.
_TIERS: Mapping[str | None, str] = {
    **{None: "default", "auto": "default", "default": "default"},
    **{"flex": "flex", "priority": "priority", "fast": "priority"},
}


def error(wrong: HttpRefusal, _: str = "") -> bytes:
    """Return an error body."""
    inside = {
        "message": wrong.message,
        "type": wrong.type,
        "param": wrong.param,
        "code": wrong.code,
    }
    return msgspec.json.encode({"error": inside})


def invalid(wrong: InvalidRequestError) -> HttpRefusal:
    """Return what a request is refused with that is not in order."""
    return HttpRefusal(400, str(wrong), INVALID, wrong.code, wrong.param)


def key(headers: Mapping[str, str]) -> str:
    """Return the key that a request was sent with."""
    return headers.get("Authorization", "").removeprefix("Bearer ")


def headers(limits: Iterable[Limit], account: str, request_id: str) -> dict[str, str]:
    """Return what goes with every answer."""
    return {
        "openai-organization": account,
        **limit_headers(limits),
        "x-request-id": request_id,
    }


def limit_headers(limits: Iterable[Limit]) -> dict[str, str]:
    """Return the headers that report limits."""
    found = {}
    for limit in limits:
        found[f"x-ratelimit-limit-{limit.of}"] = f"{limit.most:g}"
        found[f"x-ratelimit-remaining-{limit.of}"] = str(limit.left)
        found[f"x-ratelimit-reset-{limit.of}"] = _duration(limit.whole_s)
    return found


def _duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: ``20ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"


def models(listed: Mapping[str, str]) -> object:
    """Return the list of models, from their names and the days on which they end."""
    shape = {"object": "model", "created": 0, "owned_by": "batchd"}
    data = [{"id": name, **shape, "shutdown_date": day or None} for name, day in listed.items()]
    return {"object": "list", "data": data}


_MISSING = re.compile(r"missing required field `([^`]*)`")


def unreadable(wrong: Exception, place: str = "") -> InvalidRequestError:
    """Return the refusal of what could not be decoded, with the place that it was found at."""
    if found := _MISSING.search(str(wrong)):
        param = ".".join(filter(None, (place, found[1])))
        text = f"Missing required parameter: '{param}'."
        return InvalidRequestError(text, param, "missing_required_parameter")
    text = f"We could not parse the body of your request {place}: {wrong}"
    return InvalidRequestError(text, place or None)


def check_effort(family: Family, effort: str | None, param: str) -> None:
    """Hold a request to the efforts that its model takes; ``param`` is the field.

    Raises ``InvalidRequestError``.
    """
    if effort is not None and effort not in family.efforts:
        takes = ", ".join(f"'{e}'" for e in sorted(family.efforts))
        raise InvalidRequestError(
            f"Unsupported value: '{param}' does not support '{effort}' with this model. Supported values are: {takes}.",
            param,
            "unsupported_value",
        )


def tier(asked: str | None) -> str:
    """Return the tier that a request gets.

    Raises ``InvalidRequestError`` where there is none such.
    """
    if asked not in _TIERS:
        raise InvalidRequestError(
            f"Invalid service_tier argument: '{asked}' is not available for this model.",
            "service_tier",
            "invalid_service_tier",
        )
    return _TIERS[asked]


def check_strict(schema: Mapping[str, Any], of: str, param: str) -> None:
    """Hold a schema to OpenAI's strict subset. Raises ``InvalidRequestError``."""
    for place, part in objects(schema):
        if part.get("additionalProperties") is not False:
            wrong = "'additionalProperties' is required to be supplied and to be false."
        elif {*part.get("properties", {})} - {*part.get("required", ())}:
            wrong = (
                "'required' is required to be supplied and to be an array including every key in "
                "properties."
            )
        else:
            continue
        raise InvalidRequestError(
            f"Invalid schema for {of}: In context=({', '.join(place)}), {wrong}",
            param,
            "invalid_function_parameters" if of.startswith("function") else "invalid_json_schema",
        )


def objects(
    schema: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield all objects in a schema, with their places."""
    if schema.get("type") == "object":
        yield place, schema
        for name, part in schema.get("properties", {}).items():
            yield from objects(part, (*place, "properties", name))
    if isinstance(schema.get("items"), Mapping):
        yield from objects(schema["items"], (*place, "items"))
    for i, part in enumerate(schema.get("anyOf", ())):
        yield from objects(part, (*place, "anyOf", str(i)))
