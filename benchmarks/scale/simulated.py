"""A worker whose agents ask no model and run no command:
all that a daemon sees of a task, and nothing else.

It is ``batchd worker`` with another agent, and speaks the real protocol: a step is an ``Ask`` with
what the tool before has printed, its ``Granted``, and a ``Record`` of an answer of 4 KB.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from batchd import wire
from batchd.agent import loop
from batchd.agent.services import AgentServices, EventBuffer
from batchd.events import CallAnswered, CallStarted, RoundEvaluated, TaskStarted, ToolRan
from batchd.pool import elsewhere
from batchd.records import Answer, Evaluation, Purpose, TaskStatus, ToolCall, Usage
from batchd.taskstate import Verdict, fold

_WORDS = [f"{word}{i}" for i in range(50) for word in ("def ", "return ", "import ", "value_")]
#: What an answer and the output of a command have, in bytes.
_ANSWER, _OUTPUT = 4096, 500


def text(size: int) -> str:
    """Return something that deflates about as well as what models and commands write."""
    return " ".join(random.choices(_WORDS, k=size // 8))[:size]


ANSWERS = [text(_ANSWER) for _ in range(16)]
OUTPUT = text(_OUTPUT)
TOOL = ToolCall("call_1", "shell", '{"command": "make test"}')
USAGE = Usage(calls=1, input_tokens=2000, output_tokens=900)


async def steps(run: wire.Run, host: AgentServices) -> loop.AttemptEnd:
    """Take as many steps as the task's prompt says, each after as many seconds as it says."""
    count, pause_s = run.task.first_prompt.split()
    journal = EventBuffer(run, host)
    journal.add(TaskStarted(at=time.time(), terms=run.terms))
    for number in range(int(count)):
        await asyncio.sleep(float(pause_s))
        reply = await host.ask(
            wire.Ask(
                ref=run.ref,
                attempt=run.attempt,
                seq=journal.seq,
                events=journal.take(),
                purpose=Purpose.AGENT,
                model=run.terms.model.name,
                input_tokens=2000,
                max_output_tokens=4096,
            )
        )
        if not isinstance(reply, CallStarted):
            raise SystemExit(f"{run.ref}: {reply}")
        journal.add(reply)
        answer = Answer(content=ANSWERS[number % len(ANSWERS)], tool_calls=(TOOL,), usage=USAGE)
        journal.add(
            CallAnswered(at=time.time(), purpose=Purpose.AGENT, answer=answer, calls=(TOOL,))
        )
        await journal.flush()
        journal.add(ToolRan(at=time.time(), call=TOOL, output=OUTPUT, exit_code=0))
    journal.add(
        RoundEvaluated(at=time.time(), evaluation=Evaluation(by="none", done=True), final=True)
    )
    state = fold(run.task.first_prompt, journal.events)
    verdict = Verdict(status=TaskStatus.COMPLETED)
    journal.add(host.finish(state, verdict, time.time()))
    await journal.flush()
    return loop.AttemptEnd("finished", fold(run.task.first_prompt, journal.events), ())


if __name__ == "__main__":
    loop.run = steps
    sys.exit(elsewhere.main())
