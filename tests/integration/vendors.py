"""The vendors' own words: clients as users have them,
and their types held to every byte of requests and answers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming as ChatParams,
)
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

if TYPE_CHECKING:
    # Loaded where it is needed: it takes seconds, and every process that collects tests loads this.
    from anthropic import AsyncAnthropic


def _types(dialect: str) -> tuple[Any, Any]:
    """Return a dialect's types of requests and of answers."""
    if dialect == "messages":
        from anthropic.types import Message
        from anthropic.types.message_create_params import (
            MessageCreateParamsNonStreaming,
        )

        return MessageCreateParamsNonStreaming, Message
    if dialect == "responses":
        return ResponseCreateParamsNonStreaming, Response
    return ChatParams, ChatCompletion


def _eager(schema: Any) -> Any:
    """Return a schema in which nothing is checked only when it is read:
    lists within requests are.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_eager, schema))
    if not isinstance(schema, dict):
        return schema
    schema = {key: _eager(value) for key, value in schema.items()}
    return schema | {"type": "list"} if schema.get("type") == "generator" else schema


@functools.cache
def _validator(dialect: str) -> SchemaValidator:
    return SchemaValidator(_eager(TypeAdapter(_types(dialect)[0]).core_schema))


def check_request(dialect: str, body: str | bytes) -> None:
    """Hold a request to the vendor's type. Raises ``pydantic.ValidationError``."""
    _validator(dialect).validate_json(body, strict=True, extra="forbid")


def check_answer(dialect: str, body: str | bytes) -> Any:
    """Return an answer, held to the vendor's type. Raises ``pydantic.ValidationError``."""
    return _types(dialect)[1].model_validate_json(body, strict=True, extra="forbid")


def check_error(body: str | bytes) -> None:
    """Hold an error to Anthropic's types, which have its details apart.

    Raises ``pydantic.ValidationError``.
    """
    from anthropic.types.shared.error_details import ErrorDetails
    from anthropic.types.shared.error_response import ErrorResponse

    whole = json.loads(body)
    details = whole["error"].pop("details", None)
    ErrorResponse.model_validate_json(json.dumps(whole), strict=True, extra="forbid")
    if details is not None:
        known: TypeAdapter[ErrorDetails] = TypeAdapter(ErrorDetails)
        known.validate_json(json.dumps(details), strict=True, extra="forbid")


@asynccontextmanager
async def openai_at(base_url: str, key: str = "sk-x") -> AsyncIterator[AsyncOpenAI]:
    """A client of OpenAI's that reports faults instead of trying again."""
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def anthropic_at(base_url: str, key: str = "sk-x") -> AsyncIterator[AsyncAnthropic]:
    """The same of Anthropic's, whose address is that above ``/v1``."""
    from anthropic import AsyncAnthropic

    root = base_url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=root, api_key=key, max_retries=0) as client:
        yield client


SHELL = {"type": "object", "properties": {"command": {"type": "string"}}}
PATHS = {"chat": "chat/completions", "responses": "responses", "messages": "messages"}
VERSION = {"anthropic-version": "2023-06-01"}


def request(dialect: str, model: str, prompt: str = "go", **more: Any) -> dict[str, Any]:
    """Return the body of a first request, with a tool, in a dialect."""
    turns = [{"role": "user", "content": prompt}]
    of_tool = {"name": "shell", "description": "Runs a command."}
    match dialect:
        case "chat":
            function = {"type": "function", "function": {**of_tool, "parameters": SHELL}}
            return {"model": model, "messages": turns, "tools": [function], **more}
        case "responses":
            tool = {"type": "function", **of_tool, "parameters": SHELL, "strict": False}
            return {"model": model, "input": turns, "tools": [tool], "store": False, **more}
    tool = {**of_tool, "input_schema": SHELL}
    return {"model": model, "messages": turns, "tools": [tool], "max_tokens": 4096, **more}


def follow(dialect: str, body: dict[str, Any], answer: dict[str, Any], output: str) -> None:
    """Add an answer to a request's body as it is, and the outputs of its calls."""
    match dialect:
        case "chat":
            message = answer["choices"][0]["message"]
            body["messages"].append(message)
            body["messages"] += [
                {"role": "tool", "tool_call_id": call["id"], "content": output}
                for call in message.get("tool_calls") or ()
            ]
        case "responses":
            body["input"] += answer["output"]
            body["input"] += [
                {"type": "function_call_output", "call_id": item["call_id"], "output": output}
                for item in answer["output"]
                if item["type"] == "function_call"
            ]
        case _:
            body["messages"].append({"role": "assistant", "content": answer["content"]})
            results = [
                {"type": "tool_result", "tool_use_id": block["id"], "content": output}
                for block in answer["content"]
                if block["type"] == "tool_use"
            ]
            if results:
                body["messages"].append({"role": "user", "content": results})


@dataclass(frozen=True)
class Said:
    """What an answer says, in terms of no dialect."""

    text: str
    calls: list[tuple[str, Any]]
    opaque: list[str]


def said(dialect: str, answer: dict[str, Any]) -> Said:
    """Return what an answer says."""
    match dialect:
        case "chat":
            message = answer["choices"][0]["message"]
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            found = [(call["name"], _loads(call["arguments"])) for call in calls]
            return Said(message["content"] or message.get("refusal") or "", found, [])
        case "responses":
            items = answer["output"]
            parts = [
                part for item in items if item["type"] == "message" for part in item["content"]
            ]
            return Said(
                "".join(part.get("text") or part.get("refusal") or "" for part in parts),
                [
                    (item["name"], _loads(item["arguments"]))
                    for item in items
                    if item["type"] == "function_call"
                ],
                [item["encrypted_content"] for item in items if item["type"] == "reasoning"],
            )
    blocks = answer["content"]
    return Said(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
        [block["signature"] for block in blocks if block["type"] == "thinking"],
    )


def _loads(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


@dataclass(frozen=True)
class Wire:
    """Speaks to a server in any dialect, byte by byte."""

    session: aiohttp.ClientSession
    base_url: str

    async def post(
        self, dialect: str, body: dict[str, Any], key: str = "sk-x", **headers: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Return status, body and headers of an answer."""
        sent = {"Authorization": f"Bearer {key}", **VERSION, **headers}
        address = f"{self.base_url}/{PATHS[dialect]}"
        async with self.session.post(address, json=body, headers=sent) as reply:
            return reply.status, await reply.read(), reply.headers

    async def ask(self, dialect: str, body: dict[str, Any], key: str = "sk-x") -> dict[str, Any]:
        """Return an answer, request and answer held to the vendor's types."""
        check_request(dialect, json.dumps(body))
        status, answer, _ = await self.post(dialect, body, key)
        assert status == 200, answer
        check_answer(dialect, answer)
        return dict(json.loads(answer))

    async def refused(self, dialect: str, body: dict[str, Any], key: str = "sk-x") -> str:
        """Return the error of a request that is refused with 400, as text."""
        status, answer, _ = await self.post(dialect, body, key)
        assert status == 400, answer
        if dialect == "messages":
            check_error(answer)
        return json.dumps(json.loads(answer)["error"])
