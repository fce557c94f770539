"""What the vendors' own packages say of their wire formats, as strict validators of JSON."""

from __future__ import annotations

from functools import cache
from typing import Any

from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

_REQUESTS = {
    "chat": CompletionCreateParamsNonStreaming,
    "responses": ResponseCreateParamsNonStreaming,
    "messages": MessageCreateParamsNonStreaming,
}


@cache
def requests(api: str) -> SchemaValidator:
    """Return what validates a request's body in a dialect."""
    return SchemaValidator(_eager(TypeAdapter(_REQUESTS[api]).core_schema))


def hold(api: str, body: bytes) -> None:
    """Hold a request's body to the vendor's types: unknown fields, wrong types and values are refused at any depth."""
    requests(api).validate_json(body, strict=True, extra="forbid")


def _eager(schema: Any) -> Any:
    """Return a schema whose iterables are lists: these are looked into, those only when somebody reads them."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_eager, schema))
    if not isinstance(schema, dict):
        return schema
    schema = {key: _eager(value) for key, value in schema.items()}
    return schema | {"type": "list"} if schema.get("type") == "generator" else schema
