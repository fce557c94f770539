"""pydantic-ai: an agent with one tool, that runs a command in a plain subprocess."""

from __future__ import annotations

import asyncio

from measuring import Work, in_turns, main, ran
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def _run(work: Work) -> None:
    async with AsyncOpenAI(base_url=work.base_url, api_key="none", max_retries=0) as client:
        model = OpenAIChatModel(work.model, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, instructions="You are an agent. " * 40)

        @agent.tool_plain
        async def shell(command: str) -> str:
            """Run a shell command."""
            return await ran(command)

        await in_turns(work.tasks, lambda number: agent.run(f"task {number}"))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
