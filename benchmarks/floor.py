"""The floor that calls are measured against: a raw ``AsyncOpenAI`` loop that does the same work."""

from __future__ import annotations

import asyncio
import json

from measuring import Work, in_turns, main, ran
from openai import AsyncOpenAI

_TOOL = {
    "type": "function",
    "function": {"name": "shell", "parameters": {"type": "object", "properties": {}}},
}


async def _agent(client: AsyncOpenAI, work: Work, number: int) -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "You are an agent. " * 40},
        {"role": "user", "content": f"raw task {number}"},
    ]
    for _ in range(work.calls):
        answer = await client.chat.completions.create(
            model=work.model,
            messages=messages,
            tools=[_TOOL] * 4,  # type: ignore[arg-type] (plain dicts, as users write them)
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            said = await ran(json.loads(call.function.arguments)["command"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": said})


async def _run(work: Work) -> None:
    async with AsyncOpenAI(base_url=work.base_url, api_key="none", max_retries=0) as client:
        await in_turns(work.tasks, lambda number: _agent(client, work, number))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
