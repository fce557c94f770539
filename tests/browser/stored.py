"""A night's work written straight into a store:
thousands of tasks in seconds, each as a real one would have left it.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from batchd import results
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    Event,
    Resumed,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    TaskStarted,
    Terms,
    ToolRan,
    encode,
)
from batchd.records import (
    Answer,
    Batch,
    ErrorInfo,
    Evaluation,
    Failure,
    FailureKind,
    ModelSetup,
    Patch,
    Price,
    Purpose,
    Rate,
    Reason,
    Ref,
    Task,
    TaskStatus,
    ToolCall,
    Trigger,
    Usage,
)
from batchd.store import operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction
from batchd.taskstate import fold

#: An evening.
BEGUN = 1_795_554_000.0
_CHUNK = 200
_WORDS = [f"{w}{i}" for i in range(400) for w in ("def ", "return ", "import ", "value_", "the ")]
_PROMPTS = (
    "Write a number guessing game in Python, with a menu and a high-score file.",
    "Upgrade the dependency to its latest release and fix whatever breaks.",
    "Document every public function of the module; do not change any code.",
    "Find the slowest test of the suite and make it twice as fast.",
)


def _model(name: str, usd: float | None) -> ModelSetup:
    rate = Rate(input=usd, cached_input=usd / 10, output=usd * 8) if usd else None
    return ModelSetup(name=name, price=Price(rates=(rate,), source="config") if rate else None)


_MODELS = (
    _model("openai/gpt-5", 1.25),
    _model("openai/gpt-5-mini", 0.25),
    _model("deepseek/deepseek-chat", 0.28),
)
_UNPRICED = _model("local/qwen3-coder", None)
#: How one in so many ends: everything that a report must show.
_ENDS: Mapping[int, tuple[TaskStatus, Reason, str]] = {
    11: (
        TaskStatus.TIMEOUT,
        Reason.MAX_ITERATIONS,
        "not done after 10 rounds: two tests still fail",
    ),
    17: (TaskStatus.ERROR, Reason.PROVIDER_UNAVAILABLE, "openai did not answer (after 6 tries)"),
    23: (TaskStatus.TIMEOUT, Reason.WALL_CLOCK, "stopped after 3600 s of work (limits.timeout_s)"),
    41: (
        TaskStatus.ERROR,
        Reason.LOOP,
        "it repeated the same tool call with the same output, for the second time",
    ),
    53: (TaskStatus.CANCELLED, Reason.DEPENDENCY, "not started: 017 failed"),
}


@dataclass(slots=True)
class Night:
    """What is written."""

    folder: Path
    tasks: int
    name: str = "night"
    slots: int = 16
    #: When it was dropped.
    begun: float = BEGUN
    #: Model calls of a task, on average.
    calls: int = 6
    #: Texts that stand in prompts, answers, outputs and file names of the first tasks.
    hostile: tuple[str, ...] = ()
    #: By place: what tasks have changed in a clone.
    patches: Mapping[int, Patch] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def path(self) -> Path:
        """The store."""
        return self.folder / ".batchd" / "batchd.db"

    @property
    def outbox(self) -> Path:
        """The folder of results."""
        return self.folder / "outbox" / self.name

    def write(self) -> None:
        """Write the store, and the transcripts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        asyncio.run(self._write())

    async def _write(self) -> None:
        batch = Batch(
            name=self.name,
            claim=f"claim-{self.name}",
            outbox=str(self.folder / "outbox"),
            request="request.json",
            received_at=self.begun,
        )
        tasks = [self._task(n) for n in range(self.tasks)]
        store = Store(self.path, clock=lambda: self.begun)
        await store.write(operations.add_batch, batch, tasks)
        self.outbox.mkdir(parents=True)
        free = [(self.begun + 0.2 * slot, slot) for slot in range(self.slots)]
        lives = []
        for number, task in enumerate(tasks):
            at, slot = heapq.heappop(free)
            events = list(self._life(number, at))
            heapq.heappush(free, (events[-1].at if events else at, slot))
            lives.append((task, self._ended(batch, number, task, events)))
        for start in range(0, len(lives), _CHUNK):
            chunk = lives[start : start + _CHUNK]
            await asyncio.gather(*(self._record(store, task, events) for task, events in chunk))
        await store.write(operations.batch_published, self.name)
        store.close()

    def _task(self, number: int) -> Task:
        hostile = self.hostile[number : number + 1]
        prompt = (
            hostile[0]
            if hostile
            else f"{_PROMPTS[number % 4]}\n\nPackage {number}. {self._text(200)}"
        )
        model = _UNPRICED if number % 97 == 96 else _MODELS[number % 3]
        return Task(id=f"{number + 1:03}", first_prompt=prompt, model=model.name, tags=("nightly",))

    def _text(self, size: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=size // 8))

    def _life(self, number: int, at: float) -> Iterator[Event]:
        """Yield a task's events, its end apart; none: it never began."""
        if number % 53 == 52:
            return
        model = _UNPRICED if number % 97 == 96 else _MODELS[number % 3]
        evil = self.hostile[number] if number < len(self.hostile) else ""
        yield TaskStarted(
            at=at,
            terms=Terms(
                model=model, judge=model, system_prompt=self._text(1500), files={}, triggers={}
            ),
        )
        for turn in range(1, self._random.randint(2, 2 * self.calls - 2) + 1):
            at += 0.1
            yield CallStarted(
                at=at,
                purpose=Purpose.AGENT,
                input_tokens=900 * turn,
                max_output_tokens=8192,
                reserved_usd=0.02,
            )
            if number % 31 == 30 and turn == 2:
                at += 30
                failure = Failure(kind=FailureKind.TIMEOUT, message="no answer within 30 s")
                yield CallFailed(at=at, failure=failure)
                yield Suspended(at=at, cause="park", message="the provider answers no request")
                at += 90
                yield Resumed(at=at, attempt=2)
                continue
            took = self._random.uniform(1, 9)
            at += took
            tool = ToolCall(
                f"call_{turn}",
                "shell",
                f'{{"command": "python3 -m pytest -q tests/test_{turn}.py"}}',
            )
            usage = Usage(
                calls=1,
                input_tokens=900 * turn,
                cached_input_tokens=800 * (turn - 1),
                output_tokens=180,
                estimated=number % 97 == 96,
            )
            answer = Answer(
                content=evil or self._text(300), tool_calls=(tool,), usage=usage, seconds=took
            )
            yield CallAnswered(at=at, purpose=Purpose.AGENT, answer=answer, calls=(tool,))
            at += 0.4
            yield ToolRan(
                at=at,
                call=tool,
                output=evil or self._text(900),
                exit_code=int(turn == 1),
                seconds=0.4,
            )
        done = _end(number)[0] is TaskStatus.COMPLETED
        yield RoundEvaluated(
            at=at + 0.5,
            evaluation=Evaluation(by="check", done=done, feedback="" if done else "exit code 1"),
        )

    def _ended(self, batch: Batch, number: int, task: Task, events: list[Event]) -> list[Event]:
        status, reason, message = _end(number)
        at = (events[-1].at if events else self.begun) + 0.01
        error = ErrorInfo(type=reason, message=message) if reason else None
        evil = self.hostile[number] if number < len(self.hostile) else "notes.txt"
        text = results.result(
            batch,
            task,
            fold(task.first_prompt, events),
            status=status,
            reason=reason,
            error=error,
            queued_at=self.begun,
            finished_at=at,
            attempts=1,
            files={evil: (1, 1)},
            triggers={evil: Trigger("git")} if evil != "notes.txt" else {},
            patch=self.patches.get(number),
        )
        if number in self.patches:
            (self.outbox / f"{task.id}.patch").write_bytes(self.patches[number].data)
        finished = TaskFinished(at=at, status=status, reason=reason, result=text)
        if events:
            (self.outbox / f"{task.id}.jsonl").write_text(results.transcript([*events, finished]))
        return [*events, finished]

    async def _record(self, store: Store, task: Task, events: list[Event]) -> None:
        *before, finished = events
        ref = Ref(self.name, task.id)
        if before:
            given = await store.write(operations.dispatch, ref, "4711")
            raw = [msgspec.Raw(encode(event)) for event in before]
            await store.record(ref, given.attempt, 0, raw)
        assert isinstance(finished, TaskFinished)
        await store.write(TaskTransaction.finish, ref, finished, attempt=None)
        await store.write(operations.published, ref)


def _end(number: int) -> tuple[TaskStatus, Reason | None, str]:
    ends = (end for every, end in _ENDS.items() if number % every == every - 1)
    return next(ends, (TaskStatus.COMPLETED, None, ""))
