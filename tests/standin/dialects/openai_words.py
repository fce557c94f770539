"""OpenAI's words for what a request is refused for, and some of those who imitate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from standin.faults import Fault, HttpRefusal

INVALID = "invalid_request_error"
_RATE = HttpRefusal(
    429,
    "Rate limit reached for this model in organization org-stand-in on requests per min (RPM). "
    "Please try again later.",
    "requests",
    "rate_limit_exceeded",
    retry=True,
)
_BUSY = HttpRefusal(
    503,
    "The engine is currently overloaded, please try again later.",
    "server_error",
    "overloaded",
)
OVERFLOW = HttpRefusal(
    400,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 "
    "tokens. Please reduce the length of the messages.",
    INVALID,
    "context_length_exceeded",
    "messages",
)

#: By the fault's name.
REFUSALS: Mapping[str, HttpRefusal] = {
    "rate-limit": _RATE,
    "429": _RATE,
    "token-limit": replace(
        _RATE,
        message=_RATE.message.replace("requests per min (RPM)", "tokens per min (TPM)"),
        type="tokens",
    ),
    # OpenAI's, of the requests of a day.
    "day-limit": replace(
        _RATE,
        message="Rate limit reached for {model} in organization org-stand-in on requests per day (RPD). "
        "Please try again later.",
    ),
    "slow-down": replace(
        _RATE,
        message="You are sending requests faster than before. Please slow down.",
        code="slow_down",
    ),
    "insufficient-quota": HttpRefusal(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    # DeepSeek's own words for an empty account.
    "402": HttpRefusal(402, "Insufficient Balance", "unknown_error", INVALID),
    "credit": HttpRefusal(
        429,
        "Your credit balance is exhausted. Add credits to go on.",
        "insufficient_quota",
        "credit_balance_exhausted",
    ),
    "spend-limit": HttpRefusal(
        429,
        "Your organization has reached its spend limit.",
        "insufficient_quota",
        "organization_spend_limit_exceeded",
    ),
    "project-limit": HttpRefusal(
        429,
        "This project has reached its spend limit.",
        "insufficient_quota",
        "project_spend_limit_exceeded",
    ),
    "usage-limit": HttpRefusal(
        429,
        "Your organization has reached its usage limit.",
        "insufficient_quota",
        "organization_usage_limit_exceeded",
    ),
    "400": HttpRefusal(400, "Invalid value for 'temperature'.", INVALID, None, "temperature"),
    "401": HttpRefusal(
        401,
        "Incorrect API key provided: sk-sta********t-in. You can find your API key in the settings.",
        INVALID,
        "invalid_api_key",
    ),
    # LiteLLM's, of a key that is good for other models.
    "no-access": HttpRefusal(
        401,
        "key not allowed to access model. This key can only access models=['others']. "
        "Tried to access {model}",
        "key_model_access_denied",
        "401",
        "model",
    ),
    "403": HttpRefusal(
        403,
        "Project `proj_stand_in` does not have access to this model.",
        INVALID,
        "model_not_found",
    ),
    "on-hold": HttpRefusal(
        403,
        "Your organization is not active. Please contact support.",
        INVALID,
        "account_deactivated",
    ),
    "404": HttpRefusal(
        404,
        "The model does not exist or you do not have access to it.",
        INVALID,
        "model_not_found",
        "model",
    ),
    "409": HttpRefusal(409, "The request conflicts with another one.", INVALID, "conflict"),
    "413": HttpRefusal(413, "The request body is too large.", INVALID, "request_too_large"),
    "500": HttpRefusal(
        500,
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    ),
    "503": _BUSY,
    "529": _BUSY,
    "504": HttpRefusal(504, "The request timed out.", "server_error", "timeout"),
    "context-overflow": OVERFLOW,
    # llama.cpp's way of saying the same: its code is the number of the status.
    "llama-overflow": HttpRefusal(
        400,
        "the request exceeds the available context size, try increasing it",
        "exceed_context_size_error",
        400,
    ),
    "prompt-filter": HttpRefusal(
        400,
        "The response was filtered due to the prompt triggering the content management policy. "
        "Please modify your prompt and retry.",
        INVALID,
        "content_filter",
        "prompt",
    ),
    "flex-full": HttpRefusal(
        429,
        "Resource Unavailable: there is no room for flex processing at this time. You are not charged.",
        "resource_unavailable",
        "resource_unavailable",
    ),
    "seals-lost": HttpRefusal(
        400,
        "The encrypted content of an item could not be verified.",
        INVALID,
        "invalid_encrypted_content",
        "input",
    ),
    # As OpenRouter sends it, in the place of an answer.
    "error-200": HttpRefusal(200, "Provider returned error", "upstream_error", 502),
    # DeepSeek's own words.
    "thoughtless": HttpRefusal(
        400,
        "The `reasoning_content` in the thinking mode must be passed back to the API.",
        INVALID,
        INVALID,
    ),
}


def refusal(fault: Fault) -> HttpRefusal:
    """Return a fault in OpenAI's words, with its true numbers where it has some."""
    if fault.window:
        return _too_long(fault)
    words = REFUSALS[fault.name]
    return replace(words, message=words.message.replace("{model}", fault.model))


def _too_long(fault: Fault) -> HttpRefusal:
    resulted = f"your messages resulted in {fault.prompt} tokens"
    if fault.prompt <= fault.window:
        parts = f"({fault.prompt} in the messages, {fault.output} in the completion)"
        resulted = f"you requested {fault.prompt + fault.output} tokens {parts}"
    message = (
        f"This model's maximum context length is {fault.window} tokens. However, {resulted}. "
        "Please reduce the length of the messages."
    )
    return replace(OVERFLOW, message=message)
