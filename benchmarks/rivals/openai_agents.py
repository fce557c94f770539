"""openai-agents: an agent with one tool, that runs a command in a plain subprocess."""

from __future__ import annotations

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from measuring import Work, in_turns, main, ran
from openai import AsyncOpenAI


@function_tool
async def shell(command: str) -> str:
    """Run a shell command."""
    return await ran(command)


async def _run(work: Work) -> None:
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(base_url=work.base_url, api_key="none", max_retries=0) as client:
        model = OpenAIChatCompletionsModel(model=work.model, openai_client=client)
        agent = Agent(
            name="bench", instructions="You are an agent. " * 40, tools=[shell], model=model
        )
        await in_turns(work.tasks, lambda number: Runner.run(agent, f"task {number}", max_turns=9))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
