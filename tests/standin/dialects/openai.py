"""What OpenAI's two dialects share: the words of refusals, headers, and the list of models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import msgspec

from standin import families
from standin.dialects.openai_words import INVALID, REFUSALS, refusal
from standin.families import Family
from standin.faults import HttpRefusal
from standin.limiter import Limit
from standin.simulated_request import InvalidRequestError

__all__ = ["INVALID", "REFUSALS", "refusal"]


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
    found = {"openai-organization": account, **limit_headers(limits)}
    return {**found, "x-request-id": request_id} if request_id else found


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


_FIELD = re.compile(r"unknown field `([^`]*)`|missing required field `([^`]*)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$")


def unreadable(wrong: Exception, place: str = "") -> InvalidRequestError:
    """Return the refusal of what could not be decoded, with the place that it was found at."""
    said = str(wrong)
    at = ".".join(p for p in (place, *_PLACE.findall(said)) if p)
    if (found := _FIELD.search(said)) is None:
        about = f" '{at}'" if at else ""
        text = f"We could not parse the body of your request{about}: {said}"
        return InvalidRequestError(text, at or None)
    param = ".".join(p for p in (at, found[1] or found[2]) if p)
    if found[1]:
        return InvalidRequestError(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    return InvalidRequestError(
        f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
    )


def check_model(
    family: Family, model: str, effort: str | None, sampling: Mapping[str, float | None], param: str
) -> str:
    """Hold a request to what its model takes, and return the effort that it has.

    ``param`` is the effort's field. Raises ``InvalidRequestError``.
    """
    chosen = effort or family.effort
    if chosen not in family.efforts:
        takes = ", ".join(f"'{e}'" for e in families.EFFORTS if e in family.efforts)
        raise InvalidRequestError(
            f"Unsupported value: '{param}' does not support '{chosen}' with this model. Supported values are: {takes}.",
            param,
            "unsupported_value",
        )
    if family.temperature == "ever" or (family.temperature == "unthinking" and chosen == "none"):
        return chosen
    for name, value in sampling.items():
        if value is not None and value != 1:
            raise InvalidRequestError(
                f"Unsupported value: '{name}' does not support {value:g} with {model}. Only the default (1) value is supported.",
                name,
                "unsupported_value",
            )
    return chosen


#: How OpenAI's tiers are asked for, and what serves them.
TIERS: Mapping[str | None, str] = {
    None: "default",
    "auto": "default",
    "default": "default",
    "scale": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}


def tier(family: Family, asked: str | None) -> str:
    """Return the tier that a request gets.

    Raises ``InvalidRequestError`` where its model has none such.
    """
    if asked not in TIERS or (asked == "flex" and not family.flex):
        raise InvalidRequestError(
            f"Invalid service_tier argument: '{asked}' is not available for this model.",
            "service_tier",
            "invalid_service_tier",
        )
    return TIERS[asked]
