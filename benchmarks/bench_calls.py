"""CPU a model call, everything included, against a raw ``AsyncOpenAI`` loop in the same run.

The agents' commands run in sandboxes, whose processes are not counted; the server answers at once. What starting and
following them takes, agents tell that make as many calls and run no commands.
Batches and raw loops take turns, so that a machine whose speed drifts is fair to both.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor

from harness import row, stage

TASKS, CALLS, ROUNDS = 100, 4, 3


def raw_loop(base_url: str) -> float:
    """Return the CPU milliseconds of one call in a plain loop over the SDK's own ``create``."""
    from openai import AsyncOpenAI  # noqa: PLC0415 (only in the child)

    tool = {
        "type": "function",
        "function": {"name": "shell", "parameters": {"type": "object", "properties": {}}},
    }

    async def agent(client: AsyncOpenAI, number: int) -> None:
        messages: list[dict[str, object]] = [
            {"role": "system", "content": "You are an agent. " * 40},
            {"role": "user", "content": f"raw task {number}"},
        ]
        for _ in range(CALLS):
            answer = await client.chat.completions.create(
                model=f"steps-{CALLS}",
                messages=messages,
                tools=[tool] * 4,  # type: ignore[arg-type] (plain dicts, as users write them)
            )
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "ok"}
                for call in message.tool_calls or ()
            ]

    async def run(count: int) -> None:
        async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            await asyncio.gather(*(agent(client, i) for i in range(count)))

    asyncio.run(run(4))
    before = resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(run(TASKS))
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent * 1000 / (TASKS * CALLS)


def main() -> int:
    """Measure and print."""
    ours, talk, raw = [], [], []
    with (
        stage(f"steps-{CALLS}", processes=2, agents=16) as (server, daemon),
        stage(f"length-{CALLS - 1}", processes=2, agents=16) as (_, talker),
    ):
        for each in (daemon, talker):
            each.run("warm", 32)
        for i in range(ROUNDS):
            for each, found in ((daemon, ours), (talker, talk)):
                before = each.cpu_s()
                each.run(f"calls-{i}", TASKS)
                found.append((each.cpu_s() - before) * 1000 / (TASKS * CALLS))
            with ProcessPoolExecutor(1) as child:
                raw.append(child.submit(raw_loop, server.base_url).result())
    ratio = statistics.median(a / b for a, b in zip(ours, raw, strict=True))
    without = statistics.median(a / b for a, b in zip(talk, raw, strict=True))
    cpu, floor = statistics.median(ours), statistics.median(raw)
    row("CPU a model call, daemon and workers", f"{cpu:.2f} ms", "", held=True)
    row("  the raw AsyncOpenAI loop, same run", f"{floor:.2f} ms", "", held=True)
    row("  ratio", f"{ratio:.2f}", "≤ 0.70", held=ratio <= 0.7)
    row("  ratio, where no commands are run", f"{without:.2f}", "", held=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
