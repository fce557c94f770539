"""The vendors' own words: clients as users have them, and their types held to every byte of requests and answers."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anthropic import AsyncAnthropic
from anthropic.types import Message
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.shared.error_response import ErrorResponse
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming as ChatParams,
)
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

_PARAMS = {
    "chat": ChatParams,
    "responses": ResponseCreateParamsNonStreaming,
    "messages": MessageCreateParamsNonStreaming,
}
_ANSWERS: dict[str, Any] = {"chat": ChatCompletion, "responses": Response, "messages": Message}


def _eager(schema: Any) -> Any:
    """Return a schema in which nothing is checked only when it is read: lists within requests are."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_eager, schema))
    if not isinstance(schema, dict):
        return schema
    schema = {key: _eager(value) for key, value in schema.items()}
    return schema | {"type": "list"} if schema.get("type") == "generator" else schema


@functools.cache
def _validator(dialect: str) -> SchemaValidator:
    return SchemaValidator(_eager(TypeAdapter(_PARAMS[dialect]).core_schema))


def check_request(dialect: str, body: str | bytes) -> None:
    """Hold a request to the vendor's type. Raises ``pydantic.ValidationError``."""
    _validator(dialect).validate_json(body, strict=True, extra="forbid")


def check_answer(dialect: str, body: str | bytes) -> Any:
    """Return an answer, held to the vendor's type. Raises ``pydantic.ValidationError``."""
    return _ANSWERS[dialect].model_validate_json(body, strict=True, extra="forbid")


def check_error(body: str | bytes) -> ErrorResponse:
    """Return an error of Anthropic's, held to its type. Raises ``pydantic.ValidationError``."""
    return ErrorResponse.model_validate_json(body, strict=True, extra="forbid")


@asynccontextmanager
async def openai_at(base_url: str, key: str = "sk-x") -> AsyncIterator[AsyncOpenAI]:
    """A client of OpenAI's that reports faults instead of trying again."""
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def anthropic_at(base_url: str, key: str = "sk-x") -> AsyncIterator[AsyncAnthropic]:
    """The same of Anthropic's, whose address is that above ``/v1``."""
    root = base_url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=root, api_key=key, max_retries=0) as client:
        yield client
