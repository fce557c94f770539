"""CPU of one model call: batchd's client against the SDK's own ``create``, taking turns in one run.

A transcript of 12 messages with tools, 32 calls at a time, a stand-in server that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from harness import Server, row
from msgspec.structs import asdict

from batchd.agent import prompts
from batchd.llm import ModelClient, ModelRequest
from batchd.records import Answer, Endpoint, Message, ModelSetup, ToolCall

CALLS, AT_ONCE, ROUNDS = 400, 32, 5
MODEL = "steps-99"


def transcript() -> tuple[Message, ...]:
    """Return five steps of work: system, user, then calls and their outputs."""
    messages = [Message("system", "You are an agent. " * 120), Message("user", "Write a game.")]
    for i in range(5):
        command = json.dumps({"command": f"sed -n 1,80p file{i}.py && python3 -m unittest"})
        messages.append(Message("assistant", "Next.", (ToolCall(f"call_{i}", "shell", command),)))
        messages.append(Message("tool", "a line of output\n" * 70, tool_call_id=f"call_{i}"))
    return tuple(messages)


def plain(message: Message) -> dict[str, Any]:
    """Return a message as a user of the SDK writes it."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    return {**said, "tool_calls": calls} if calls else said


async def cpu_ms(call: Callable[[], Awaitable[Any]], calls: int = CALLS) -> float:
    """Return the CPU milliseconds of one call, many at a time."""
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await call()

    before = time.process_time()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return (time.process_time() - before) * 1000 / calls


async def measure(base_url: str) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each round: batchd's, and the SDK's."""
    request = ModelRequest(messages=transcript(), tools=prompts.TOOLS, max_output_tokens=8192)
    setup = ModelSetup(name=f"bench/{MODEL}")
    client = ModelClient({"bench": Endpoint(base_url=base_url, api_key="none")})
    sdk = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages: Any = [plain(m) for m in request.messages]
    tools: Any = [{"type": "function", "function": asdict(tool)} for tool in request.tools]

    async def ours() -> None:
        answer = await client.call(setup, request, 60)
        assert isinstance(answer, Answer), answer

    async def theirs() -> None:
        await sdk.chat.completions.create(
            model=MODEL, messages=messages, tools=tools, max_completion_tokens=8192
        )

    rounds: tuple[list[float], list[float]] = [], []
    for call in (ours, theirs):
        await cpu_ms(call, AT_ONCE)
    for _ in range(ROUNDS):
        rounds[0].append(await cpu_ms(ours))
        rounds[1].append(await cpu_ms(theirs))
    await client.aclose()
    await sdk.close()
    return rounds


def main() -> int:
    """Measure and print."""
    server = Server()
    try:
        ours, theirs = asyncio.run(measure(server.base_url))
    finally:
        server.process.terminate()
        server.process.wait()
    mine, floor = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    row("CPU a call, batchd's client alone", f"{mine:.2f} ms", "about 0.5 ms", held=mine <= 0.7)
    row("  the SDK's chat.completions.create", f"{floor:.2f} ms", "", held=True)
    row("  ratio", f"{ratio:.2f}", "≤ 0.30", held=ratio <= 0.3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
