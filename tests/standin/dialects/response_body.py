"""The body of OpenAI's Responses: its fields."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ResponsesTool(_Strict):
    """A tool that is offered."""

    name: str
    type: Literal["function"]
    parameters: dict[str, Any] | None = None
    strict: bool | None = True
    description: str | None = None
    defer_loading: bool = False
    allowed_callers: list[str] | None = None
    output_schema: dict[str, Any] | None = None


class ReasoningConfig(_Strict):
    """How it is to think."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class TextConfig(_Strict):
    """What the answer is to be like."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Caching(_Strict):
    """How the prompt is to be cached."""

    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m", "12h"] = "30m"
    comparison_response_id: str | None = None


class ResponsesBody(_Strict):
    """A request."""

    model: str
    #: As it came: its bytes name it in the prompt cache.
    input: msgspec.Raw
    instructions: str | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Caching | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    safety_identifier: str | None = None
    user: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | None = None
