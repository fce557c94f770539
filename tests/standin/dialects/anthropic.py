"""Anthropic's words: refusals, headers, and the list of models."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from standin.dialects import openai
from standin.faults import Fault, HttpRefusal
from standin.limiter import Limit
from standin.simulated_request import InvalidRequestError

_INVALID = "invalid_request_error"
_LIMITED = HttpRefusal(
    429,
    "This request would exceed your organization's rate limit. Please try again later.",
    "rate_limit_error",
    retry=True,
)
_OVERLOADED = HttpRefusal(529, "Overloaded", "overloaded_error")
_USED_UP = HttpRefusal(
    400,
    "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    _INVALID,
)
_LOW_CREDIT = HttpRefusal(
    400,
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or "
    "purchase credits.",
    _INVALID,
)
_PERMISSION = HttpRefusal(
    403, "Your API key does not have permission to use the specified resource.", "permission_error"
)
_FILTERED = HttpRefusal(400, "Output blocked by content filtering policy", _INVALID)

#: By the fault's name.
REFUSALS: Mapping[str, HttpRefusal] = {
    "rate-limit": _LIMITED,
    "429": _LIMITED,
    "token-limit": replace(
        _LIMITED,
        message="This request would exceed your organization's rate limit of input tokens per minute.",
    ),
    "day-limit": replace(
        _LIMITED, message="This request would exceed the rate limit of {model} per day."
    ),
    "slow-down": replace(
        _LIMITED,
        message="Your usage has grown too fast. Please ramp up gradually.",
        code="ramp_limit_exceeded",
    ),
    "insufficient-quota": _USED_UP,
    "402": HttpRefusal(402, "There is a problem with your billing.", "billing_error"),
    "credit": _LOW_CREDIT,
    "spend-limit": HttpRefusal(
        429,
        "Your organization has reached its spend limit of this month.",
        "rate_limit_error",
        "enforced_spend_limit_reached",
    ),
    "project-limit": HttpRefusal(
        429,
        "The spend limit of your contract is reached.",
        "rate_limit_error",
        "contract_spend_limit_reached",
    ),
    "usage-limit": _USED_UP,
    "400": HttpRefusal(400, "temperature: Extra inputs are not permitted", _INVALID),
    "401": HttpRefusal(401, "invalid x-api-key", "authentication_error"),
    "no-access": replace(_PERMISSION, message="Your API key may not use {model}."),
    "403": _PERMISSION,
    "on-hold": HttpRefusal(400, "This organization is on hold.", _INVALID, "organization_on_hold"),
    "404": HttpRefusal(404, "model: {model}", "not_found_error"),
    "409": HttpRefusal(409, "The request conflicts with another one.", "conflict_error"),
    "413": HttpRefusal(
        413, "Request exceeds the maximum allowed number of bytes.", "request_too_large"
    ),
    "500": HttpRefusal(500, "Internal server error", "api_error"),
    "503": _OVERLOADED,
    "529": _OVERLOADED,
    "504": HttpRefusal(504, "The request timed out.", "timeout_error"),
    "context-overflow": HttpRefusal(
        400, "prompt is too long: 208310 tokens > 200000 maximum", _INVALID
    ),
    "llama-overflow": replace(openai.REFUSALS["llama-overflow"], foreign=True),
    "prompt-filter": _FILTERED,
    # There is no flex: what is full is full for all.
    "flex-full": _OVERLOADED,
    "seals-lost": HttpRefusal(
        400,
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block could not be verified.",
        _INVALID,
    ),
    "error-200": HttpRefusal(200, "Internal server error", "api_error"),
    "thoughtless": HttpRefusal(
        400,
        "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`.",
        _INVALID,
    ),
}


def refusal(fault: Fault) -> HttpRefusal:
    """Return a fault in Anthropic's words, with its true numbers where it has some."""
    if fault.window and fault.prompt > fault.window:
        text = f"prompt is too long: {fault.prompt} tokens > {fault.window} maximum"
        return HttpRefusal(400, text, _INVALID)
    if fault.window:
        sum_ = f"{fault.prompt} + {fault.output} > {fault.window}"
        text = (
            f"input length and `max_tokens` exceed context limit: {sum_}, decrease input length or "
            "`max_tokens` and try again"
        )
        return HttpRefusal(400, text, _INVALID)
    words = REFUSALS[fault.name]
    return replace(words, message=words.message.replace("{model}", fault.model))


def invalid(wrong: InvalidRequestError) -> HttpRefusal:
    """Return what a request is refused with that is not in order."""
    place = f"{wrong.param}: " if wrong.param else ""
    return HttpRefusal(400, place + str(wrong), _INVALID, wrong.code)


def error(wrong: HttpRefusal, request_id: str = "") -> bytes:
    """Return an error body."""
    if wrong.foreign:
        return openai.error(wrong)
    inside: dict[str, Any] = {"type": wrong.type, "message": wrong.message}
    if wrong.code:
        inside["details"] = {"error_code": wrong.code}
    return msgspec.json.encode({"type": "error", "error": inside, "request_id": request_id or None})


def key(headers: Mapping[str, str]) -> str:
    """Return the key that a request was sent with."""
    return headers.get("x-api-key") or openai.key(headers)


def headers(limits: Iterable[Limit], account: str, request_id: str) -> dict[str, str]:
    """Return what goes with every answer."""
    found = {"anthropic-organization-id": account}
    if request_id:
        found["request-id"] = request_id
    for limit in limits:
        whole = datetime.fromtimestamp(time.time() + limit.whole_s, UTC)
        for of in ("tokens", "input-tokens") if limit.of == "tokens" else (limit.of,):
            found[f"anthropic-ratelimit-{of}-limit"] = f"{limit.most:.0f}"
            found[f"anthropic-ratelimit-{of}-remaining"] = str(limit.left)
            found[f"anthropic-ratelimit-{of}-reset"] = whole.isoformat(timespec="seconds").replace(
                "+00:00", "Z"
            )
    return found


def models(listed: Mapping[str, str]) -> object:
    """Return the list of models, from their names and the days on which they end: one page."""
    data = [_model(name, day) for name, day in listed.items()]
    names = [*listed]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _model(of: str, end: str) -> Mapping[str, Any]:
    today = datetime.now(UTC).date().isoformat()
    return {
        "id": of,
        "type": "model",
        "display_name": of,
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active" if not end else "deprecated" if end > today else "retired",
        "deprecated_at": None if not end else "2026-06-01T00:00:00Z",
        "retires_at": None if not end else f"{end}T00:00:00Z",
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
        "capabilities": None,
    }
