from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from batchd.errors import Problem, StaleAttemptError, StoreError, UsedNameError
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    CancelRequested,
    Event,
    Resumed,
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
    Failure,
    FailureKind,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Reason,
    Ref,
    Task,
    TaskStatus,
    ToolCall,
    Usage,
)
from batchd.store import lookups, operations, queries
from batchd.store.queries import StoreReader
from batchd.store.rows import SpentMoney
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

pytestmark = pytest.mark.in_turns

T = TypeVar("T")

_PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")
_MODEL = ModelSetup(name="p/m", price=_PRICE)
_CALL = ToolCall("1", "shell", '{"command": "ls"}')
#: 2026-11-24, noon.
_NOON = 1795521600.0
_DAY = 86400.0


def _started(at: float = _NOON, model: ModelSetup = _MODEL) -> TaskStarted:
    return TaskStarted(at=at, terms=Terms(model=model, judge=_MODEL))


def _call(at: float = _NOON, usd: float | None = 0.5) -> CallStarted:
    return CallStarted(
        at=at, purpose=Purpose.AGENT, input_tokens=9, max_output_tokens=9, reserved_usd=usd
    )


def _answered(at: float = _NOON, content: str = "x", million: int = 1) -> CallAnswered:
    usage = Usage(calls=1, input_tokens=million * 1_000_000, output_tokens=million * 500_000)
    return CallAnswered(at=at, purpose=Purpose.AGENT, answer=Answer(content=content, usage=usage))


def _tool(output: str = "") -> ToolRan:
    return ToolRan(at=_NOON, call=_CALL, output=output, exit_code=0)


def _finished(
    status: TaskStatus = TaskStatus.COMPLETED, result: str = "{}", at: float = _NOON
) -> TaskFinished:
    reason = None if status is TaskStatus.COMPLETED else Reason.LOOP
    return TaskFinished(at=at, status=status, reason=reason, result=result)


def _raw(*events: Event) -> list[msgspec.Raw]:
    return [msgspec.Raw(encode(e)) for e in events]


def _batch(outbox: Path, name: str = "b", claim: str = "C1", **more: Any) -> Batch:
    return Batch(
        name=name,
        claim=claim,
        outbox=str(outbox),
        request="request.json",
        received_at=_NOON - 60,
        **more,
    )


def _task(name: str, **more: Any) -> Task:
    return Task(id=name, first_prompt=f"Do {name}", model="p/m", **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Give a store at noon, in a directory that does not exist before."""
    store = Store(tmp_path / "state" / "batchd.db", clock=lambda: _NOON)
    yield store
    store.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _prune(store: Store, before: float) -> None:
    while await store.write(operations.prune, before):
        pass


async def _finish(store: Store, ref: Ref, status: TaskStatus = TaskStatus.COMPLETED) -> None:
    await store.write(TaskTransaction.finish, ref, _finished(status), attempt=None)
    await store.write(operations.published, ref)


def test_a_claim_is_stored_once(store: Store, tmp_path: Path) -> None:
    """A claim that comes again, as after a crash, returns what is stored;
    a refused file stays refused.
    """
    problem = Problem("tasks[0]", "unknown key 'modle'", "model")

    async def add() -> None:
        first = await store.write(
            operations.add_batch, _batch(tmp_path, budget_usd=5.0), [_task("1"), _task("2")]
        )
        again = await store.write(
            operations.add_batch, _batch(tmp_path, name="other"), [_task("9")]
        )
        assert (
            again
            == first
            == store.read(lookups.claimed, "C1")
            == store.read(lookups.find_batch, "b")
        )
        with pytest.raises(UsedNameError, match="a batch b is stored already"):
            await store.write(operations.add_batch, _batch(tmp_path, claim="C2"), (), [problem])
        refused = await store.write(
            operations.add_batch, _batch(tmp_path, "b-2", "C2"), (), [problem]
        )
        assert (
            await store.write(operations.add_batch, _batch(tmp_path, claim="C2"), [_task("1")])
            == refused
        )

    _run(add())
    assert store.read(lookups.find_task, Ref("b", "2")) == _task("2")
    assert [*store.read(lookups.tasks, "b")] == ["1", "2"]
    assert [*store.read(lookups.tasks, "b-2")] == []
    assert store.read(lookups.problems, "b-2") == (problem,)
    assert store.read(lookups.problems, "b") == ()
    assert store.read(lookups.claimed, "C3") is None
    with pytest.raises(StoreError, match="no task b/9"):
        store.read(lookups.find_task, Ref("b", "9"))


def test_a_task_comes_back_as_it_was_given(store: Store, tmp_path: Path) -> None:
    """Every field of a task survives, large ones and odd characters included."""
    task = _task(
        "t-1",
        dir="/r/ä b\n",
        system_prompt="\x00\U0001f600" * 1000,
        output_schema={"type": "object", "x": [1, 2.5, None, {"deep": True}]},
        env={"A": "b=c"},
        tags=("x", "y"),
        metadata={"any": ["thing"]},
    )
    _run(store.write(operations.add_batch, _batch(tmp_path), [task]))
    assert store.read(lookups.find_task, Ref("b", "t-1")) == task
    assert store.read(lookups.restore).queued[0].directory == "/r/ä b\n"


def test_only_the_current_attempt_may_record(store: Store, tmp_path: Path) -> None:
    """Older attempts, gaps, other events under a known number,
    and anything after the end are refused.
    """
    ref = Ref("b", "1")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1")])
        first = await store.write(operations.dispatch, ref)
        assert (first.attempt, first.history, first.queued_at) == (1, (), _NOON - 60)
        await store.record(ref, 1, 0, _raw(_started()))
        second = await store.write(operations.dispatch, ref)
        assert (second.attempt, second.history) == (2, (encode(_started()),))
        for attempt, seq, event in (
            (1, 1, _tool()),
            (3, 1, _tool()),
            (2, 2, _tool()),
            (2, 0, _tool()),
        ):
            with pytest.raises(StaleAttemptError):
                await store.record(ref, attempt, seq, _raw(event))
        with pytest.raises(StaleAttemptError):
            await store.write(TaskTransaction.finish, ref, _finished(), attempt=1)
        assert await store.write(TaskTransaction.finish, ref, _finished(), attempt=2)
        with pytest.raises(StaleAttemptError):
            await store.record(ref, 2, 2, _raw(_tool()))
        with pytest.raises(StaleAttemptError):
            await store.write(operations.dispatch, ref)
        with pytest.raises(StaleAttemptError):
            await store.write(operations.suspend, ref, 2, TaskStatus.PARKED)
        with pytest.raises(ValueError, match="no task b/2"):
            await store.write(operations.dispatch, Ref("b", "2"))
        with pytest.raises(ValueError, match="not an event"):
            await store.record(ref, 2, 2, [msgspec.Raw(b'["NoSuchEvent", {}]')])

    _run(scenario())
    assert store.read(lookups.events, ref) == [_started(), _finished()]


def test_repeats_are_accepted_and_change_nothing(store: Store, tmp_path: Path) -> None:
    """What is sent again because its answer was lost counts once;
    what is new behind it is stored.
    """
    ref = Ref("b", "1")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1")])
        await store.write(operations.dispatch, ref)
        opening, answer = _raw(_started()), _raw(_answered(content="y" * 2000), _tool("z" * 2000))
        for _ in range(2):
            assert await store.record(ref, 1, 0, opening, _call()) == [_started()]
        for _ in range(3):
            await store.record(ref, 1, 2, answer)
        await store.record(ref, 1, 3, [answer[1], *_raw(_tool("new"), _finished())])
        await store.record(ref, 1, 5, _raw(_finished()))
        # All of these wait in one group.
        await asyncio.gather(*(store.record(ref, 1, 2, answer) for _ in range(5)))
        assert not await store.write(
            TaskTransaction.finish, ref, _finished(TaskStatus.ERROR), attempt=None
        )

    _run(scenario())
    assert [type(e).__name__ for e in store.read(lookups.events, ref)] == [
        *("TaskStarted", "CallStarted", "CallAnswered", "ToolRan", "ToolRan", "TaskFinished")
    ]
    assert store.read(lookups.task_money, ref) == SpentMoney(settled=2.0)
    assert store.read(lookups.unfinished, "b") == 0


def test_the_first_end_wins(store: Store, tmp_path: Path) -> None:
    """Of many ends at once exactly one is stored, and it is the one that everybody reads."""
    ref = Ref("b", "1")

    async def scenario() -> list[bool]:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1"), _task("2")])
        ends = (
            store.write(TaskTransaction.finish, ref, _finished(result=f"{i}\n"), attempt=None)
            for i in range(9)
        )
        return list(await asyncio.gather(*ends))

    assert _run(scenario()) == [True] + [False] * 8
    with StoreReader(store.path) as reader:
        found = list(reader.results("b"))
        assert (reader.result(ref), reader.result(Ref("b", "2"))) == ("0\n", "")
    assert found == [("1", "0\n")]
    assert store.read(lookups.unfinished, "b") == 1


def test_everything_a_daemon_must_know_at_its_start(tmp_path: Path) -> None:
    """What ran is queued again, what is parked stays so,
    ends that others wait for and unpublished ones are reported.
    """
    path = tmp_path / "batchd.db"
    tasks = [
        _task("done"),
        _task("next", after=("done", "runs"), priority=3),
        _task("runs", dir="/r/x"),
        _task("parked"),
        _task("failed"),
        _task("hopeless", after=("failed",)),
    ]

    async def live(store: Store) -> None:
        await store.write(operations.add_batch, _batch(tmp_path), tasks)
        await store.write(operations.add_batch, _batch(tmp_path, "gone", "C2"), [_task("1")])
        await store.write(
            operations.add_batch, _batch(tmp_path, "bad", "C3"), (), [Problem("", "empty")]
        )
        await _finish(store, Ref("gone", "1"))
        await store.write(operations.batch_published, "gone")
        await _finish(store, Ref("b", "done"))
        for name in ("runs", "parked"):
            await store.write(operations.dispatch, Ref("b", name), worker="w1")
        await store.write(operations.suspend, Ref("b", "parked"), 1, TaskStatus.PARKED, "no quota")
        await store.write(
            TaskTransaction.finish, Ref("b", "failed"), _finished(TaskStatus.ERROR), attempt=None
        )

    store = Store(path)
    _run(live(store))
    store.close()
    store = Store(path)
    restored = store.read(lookups.restore)
    store.close()
    assert [b.name for b in restored.batches] == ["b", "bad"]
    assert restored.unpublished == (Ref("b", "failed"),)
    assert sorted(restored.ended) == [
        (Ref("b", "done"), TaskStatus.COMPLETED),
        (Ref("b", "failed"), TaskStatus.ERROR),
    ]
    waiting = {q.ref.task: q for q in restored.queued}
    assert list(waiting) == ["next", "runs", "parked", "hopeless"]
    assert [q.order for q in restored.queued] == sorted(q.order for q in restored.queued)
    assert waiting["next"].after == (Ref("b", "done"), Ref("b", "runs"))
    assert waiting["next"].priority == 3
    assert (waiting["runs"].begun, waiting["runs"].given_back) == (True, False)
    assert not waiting["next"].begun
    assert waiting["runs"].directory == "/r/x"
    assert waiting["next"].directory == f"{tmp_path}/b/next"
    assert waiting["parked"].given_back


def test_deaths_of_workers_are_counted_where_no_other_task_can_have_caused_them(
    store: Store, tmp_path: Path
) -> None:
    """Once an attempt; of deaths that others may have caused the first makes a suspect, no more;
    a dispatch is no death.
    """
    ref = Ref("b", "1")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1")])
        assert [(await store.write(operations.dispatch, ref)).crashes for _ in range(3)] == [
            0,
            0,
            0,
        ]
        assert await store.write(operations.worker_lost, ref, 3, alone=False) == 1
        assert await store.write(operations.worker_lost, ref, 3, alone=True) == 1, (
            "it has been counted"
        )
        assert await store.write(operations.worker_lost, ref, 2, alone=True) == 1, (
            "an earlier attempt"
        )
        assert (await store.write(operations.dispatch, ref)).crashes == 1
        assert await store.write(operations.worker_lost, ref, 4, alone=False) == 1
        await store.write(operations.dispatch, ref)
        assert await store.write(operations.worker_lost, ref, 5, alone=True) == 2

    _run(scenario())


def test_what_a_dead_worker_left_in_the_pipe_still_counts(store: Store, tmp_path: Path) -> None:
    """A paid answer that is read after its worker's death is stored,
    as long as no other worker has the task.
    """
    ref = Ref("b", "1")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1")])
        await store.write(operations.dispatch, ref)
        await store.record(ref, 1, 0, _raw(_started()), _call())
        await store.write(operations.worker_lost, ref, 1, alone=True)
        await store.record(ref, 1, 2, _raw(_answered()))
        assert len((await store.write(operations.dispatch, ref)).history) == 3

    _run(scenario())
    assert store.read(lookups.task_money, ref) == SpentMoney(settled=2.0)


def test_money_is_reserved_then_settled_or_unsettled(store: Store, tmp_path: Path) -> None:
    """A request counts from its permit on: as reserved,
    then at its price, or in full where it is not known.
    """
    ref = Ref("b", "1")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1"), _task("2")])
        await store.write(operations.dispatch, ref)
        await store.record(ref, 1, 0, _raw(_started()), _call())
        assert (
            store.read(lookups.task_money, ref)
            == store.read(lookups.batch_money, "b")
            == SpentMoney(reserved=0.5)
        )
        assert store.read(lookups.day_money, int(_NOON // _DAY)) == SpentMoney(reserved=0.5)
        await store.record(ref, 1, 2, _raw(_answered()))
        assert (
            store.read(lookups.batch_money, "b")
            == store.read(lookups.day_money, int(_NOON // _DAY))
            == SpentMoney(settled=2.0)
        )
        refused = Failure(kind=FailureKind.RATE_LIMITED, message="")
        lost = Failure(kind=FailureKind.TIMEOUT, message="")
        await store.record(ref, 1, 3, [], _call())
        await store.record(ref, 1, 4, _raw(CallFailed(at=_NOON, failure=refused)), _call())
        assert store.read(lookups.batch_money, "b") == SpentMoney(settled=2.0, reserved=0.5)
        await store.record(
            ref, 1, 6, _raw(CallFailed(at=_NOON, failure=lost)), _call(_NOON + 1, 0.25)
        )
        assert store.read(lookups.batch_money, "b") == SpentMoney(
            settled=2.0, unsettled=0.5, reserved=0.25
        )
        # A crash: the call in flight may have been paid.
        await store.write(operations.dispatch, ref)
        assert store.read(lookups.batch_money, "b").total == 2.75
        await store.record(ref, 2, 8, _raw(Resumed(at=_NOON + _DAY, attempt=2)))
        assert (
            store.read(lookups.task_money, ref)
            == store.read(lookups.batch_money, "b")
            == SpentMoney(settled=2.0, unsettled=0.75)
        )
        # Booked on the day of the call, not on that of the discovery.
        assert store.read(lookups.day_money, int(_NOON // _DAY)) == SpentMoney(
            settled=2.0, unsettled=0.75
        )
        assert store.read(lookups.day_money, int((_NOON + _DAY) // _DAY)) == SpentMoney()
        await store.record(ref, 2, 9, [], _call(_NOON + _DAY, 1.0))
        assert store.read(lookups.day_money, int((_NOON + _DAY) // _DAY)) == SpentMoney(
            reserved=1.0
        )
        assert store.read(lookups.day_money, int((_NOON + _DAY + 1) // _DAY)).total == 1.0
        await store.record(ref, 2, 10, _raw(CancelRequested(at=_NOON + _DAY), _finished()))
        assert store.read(lookups.day_money, int((_NOON + _DAY) // _DAY)) == SpentMoney(
            unsettled=1.0
        )
        assert store.read(lookups.batch_money, "b") == SpentMoney(settled=2.0, unsettled=1.75)

    _run(scenario())


def test_prices_are_known_after_a_restart(tmp_path: Path) -> None:
    """A task keeps the prices that it started with, also when the store is opened again."""
    path, ref = tmp_path / "batchd.db", Ref("b", "1")
    unpriced = ModelSetup(name="p/free")

    async def begin(store: Store) -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1"), _task("2")])
        await store.write(operations.dispatch, ref)
        await store.record(ref, 1, 0, _raw(_started()))
        await store.write(operations.dispatch, Ref("b", "2"))
        await store.record(Ref("b", "2"), 1, 0, _raw(_started(model=unpriced)))

    async def go_on(store: Store) -> None:
        for name in "12":
            await store.write(operations.dispatch, Ref("b", name))
            await store.record(Ref("b", name), 2, 1, _raw(_answered()))

    for step in (begin, go_on):
        store = Store(path)
        _run(step(store))
        store.close()
    with StoreReader(path) as reader:
        assert [t.tally.cost_usd for t in reader.tasks("b")] == [2.0, None]
        assert reader.batch("b").tally.cost_usd is None
        rows = {r.model: r for r in reader.spend(("model",))}
    assert (rows["m"].tally.cost_usd, rows["m"].tally.calls) == (2.0, 1)
    assert (rows["free"].tally.cost_usd, rows["free"].tally.unpriced_calls) == (None, 1)


def test_people_see_where_everything_stands(store: Store, tmp_path: Path) -> None:
    """A reader in another process's place sees status,
    round, step, tokens, money, times and errors.
    """
    error = '{"error": {"type": "loop", "message": "it repeats itself"}}\n'

    async def scenario() -> None:
        await store.write(
            operations.add_batch, _batch(tmp_path, "bad", "C0"), (), [Problem("tasks", "is empty")]
        )
        await store.write(operations.add_batch, _batch(tmp_path), [_task(str(i)) for i in range(5)])
        for name in ("0", "1", "2"):
            await store.write(operations.dispatch, Ref("b", name), worker="pool-7")
            await store.record(Ref("b", name), 1, 0, _raw(_started()), _call())
        await store.record(Ref("b", "0"), 1, 2, _raw(_answered(), _tool()))
        await store.record(Ref("b", "1"), 1, 2, _raw(_finished(TaskStatus.ERROR, error, _NOON + 9)))
        await store.record(Ref("b", "2"), 1, 2, _raw(Suspended(at=_NOON, cause="park")))
        await store.write(operations.suspend, Ref("b", "2"), 1, TaskStatus.PARKED, "bad key")
        await _finish(store, Ref("b", "3"))

    _run(scenario())
    with StoreReader(tmp_path / "state" / "batchd.db") as reader:
        running, failed, parked, _, queued = reader.tasks("b")
        batch, bad = reader.batches()
        assert reader.task(Ref("b", "0")) == running
        assert [t.ref.task for t in reader.running()] == ["0", "2"]
        assert reader.read(lookups.find_task, Ref("b", "4")) == _task("4")
        assert len(reader.read(lookups.events, Ref("b", "0"), 2)) == 2
        assert list(reader.results("b")) == [("1", error), ("3", "{}")]
        assert reader.batches(limit=1) == [batch]
        assert reader.batches(unpublished=True) == [batch, bad]
        assert reader.read(queries.first_prompts, ["bad", "b"]) == {"b": "Do 0"}
        with pytest.raises(StoreError, match="no batch x"):
            reader.tasks("x")
    assert (running.status, running.worker, running.step) == ("running", "pool-7", "ToolRan")
    assert (running.round, running.tally.calls, running.tally.cost_usd) == (1, 1, 2.0)
    assert (running.tally.input_tokens, running.tally.output_tokens) == (1_000_000, 500_000)
    assert (running.queued_at, running.started_at) == (_NOON - 60, _NOON)
    assert running.directory == f"{tmp_path}/b/0"
    assert (failed.status, failed.reason, failed.message) == ("error", "loop", "it repeats itself")
    assert (failed.finished_at, failed.tally.unsettled_usd) == (_NOON + 9, 0.5)
    assert (parked.status, parked.message, parked.tally.unsettled_calls) == ("parked", "bad key", 0)
    assert (queued.status, queued.started_at, queued.attempts) == ("queued", None, 0)
    counts = (batch.tasks, batch.queued, batch.running, batch.parked, batch.finished)
    assert (*counts, batch.error, batch.completed) == (5, 1, 1, 1, 2, 1, 1)
    assert (batch.tally.cost_usd, batch.tally.unsettled_usd, batch.tally.calls) == (2.0, 0.5, 1)
    assert (bad.batch.name, bad.tasks, bad.finished_at) == ("bad", 0, _NOON - 60)
    assert [str(p) for p in bad.problems] == ["tasks: is empty"]


def test_money_by_tag_outlives_the_texts(store: Store, tmp_path: Path) -> None:
    """A task with two tags counts under each, one without under none;
    the total stays what it is, pruned or not.
    """
    tagged = {"1": ("x", "y"), "2": ("y", "y"), "3": (), "4": ('it\'s "z"',)}

    async def scenario() -> None:
        tasks = [_task(name, tags=tags) for name, tags in tagged.items()]
        await store.write(operations.add_batch, _batch(tmp_path), tasks)
        for day, name in enumerate(tagged):
            await store.write(operations.dispatch, Ref("b", name))
            await store.record(
                Ref("b", name), 1, 0, _raw(_started(), _answered(_NOON + day * _DAY))
            )
            await _finish(store, Ref("b", name))
        await store.write(operations.batch_published, "b")

    _run(scenario())

    def spent(reader: StoreReader) -> list[list[tuple[Any, ...]]]:
        rows = [(r.tag, r.tally.calls, r.tally.cost_usd) for r in reader.spend(("tag",))]
        both = [(r.day, r.tag) for r in reader.spend(("day", "tag"), tags=["x", 'it\'s "z"'])]
        return [rows, both, [(r.tally.calls, r.tally.cost_usd) for r in reader.spend(())]]

    with StoreReader(tmp_path / "state" / "batchd.db") as reader:
        before = spent(reader)
        assert before == [
            [(None, 1, 2.0), ('it\'s "z"', 1, 2.0), ("x", 1, 2.0), ("y", 2, 4.0)],
            [("2026-11-24", "x"), ("2026-11-24", "y"), ("2026-11-27", 'it\'s "z"')],
            [(4, 8.0)],
        ]
        last = dt.date(2026, 11, 25)
        assert [r.tally.calls for r in reader.spend((), tags=["y"], since=last, until=last)] == [1]
        for models, calls in ((["m"], [4]), (["p/m", "q"], [4]), (["p"], [])):
            assert [r.tally.calls for r in reader.spend((), models=models)] == calls
        assert reader.spend((), providers=["m"]) == []
        _run(_prune(store, _NOON + 2 * _DAY))
        with pytest.raises(StoreError, match="pruned"):
            reader.read(lookups.find_task, Ref("b", "1"))
        assert spent(reader) == before


def test_only_tasks_that_went_their_way_are_examples(store: Store, tmp_path: Path) -> None:
    """Newest first: what ended by itself after a call, by model; with its time."""
    names = ("first", "cancelled", "uncalled", "running", "failed", "other")

    async def scenario() -> None:
        tasks = [_task(n, tags=("b", "a"), check="true", evaluator="none") for n in names[:-1]]
        tasks.append(Task(id="other", first_prompt="x", model="p/other"))
        await store.write(operations.add_batch, _batch(tmp_path), tasks)
        for name in names:
            await store.write(operations.dispatch, Ref("b", name))
            answers = () if name == "uncalled" else (_answered(),)
            await store.record(Ref("b", name), 1, 0, _raw(_started(), *answers))
            ends = {"cancelled": TaskStatus.CANCELLED, "failed": TaskStatus.ERROR}
            if name != "running":
                end = _finished(ends.get(name, TaskStatus.COMPLETED), at=_NOON + 40)
                await store.write(TaskTransaction.finish, Ref("b", name), end, attempt=None)

    _run(scenario())
    with StoreReader(tmp_path / "state" / "batchd.db") as reader:
        failed, first = reader.read(queries.past_of_model, "p/m", 9)
        assert (first.seconds, first.tally.cost_usd, first.tally.calls) == (40.0, 2.0, 1)
        assert (first.status, failed.status) == (TaskStatus.COMPLETED, TaskStatus.ERROR)
        assert reader.read(queries.past_of_model, "p/m", 1) == [failed]


def test_the_ledger_can_be_split_every_way(store: Store, tmp_path: Path) -> None:
    """Spent money adds up, however it is grouped, and days can be chosen."""

    async def scenario() -> None:
        for place, name in enumerate(("a", "b")):
            await store.write(operations.add_batch, _batch(tmp_path, name, name), [_task("1")])
            await store.write(operations.dispatch, Ref(name, "1"))
            answers = (_answered(_NOON + i * _DAY) for i in range(place + 1))
            await store.record(Ref(name, "1"), 1, 0, _raw(_started(), *answers))

    _run(scenario())
    with StoreReader(tmp_path / "state" / "batchd.db") as reader:
        assert [(r.batch, r.tally.cost_usd) for r in reader.spend(("batch",))] == [
            ("a", 2.0),
            ("b", 4.0),
        ]
        by_day = [(r.day, r.tally.calls) for r in reader.spend(("day",))]
        assert by_day == [("2026-11-24", 2), ("2026-11-25", 1)]
        assert [r.tally.cost_usd for r in reader.spend(())] == [6.0]
        assert reader.spend((), batch="none") == []
        (row,) = reader.spend(batch="b", since=dt.date(2026, 11, 25), until=dt.date(2026, 11, 25))
        key = (row.day, row.batch, row.provider, row.model, row.purpose)
        assert key == ("2026-11-25", "b", "p", "m", "agent")


def test_published_means_everything_is_there(store: Store, tmp_path: Path) -> None:
    """No task counts as published before its end, no batch before all of its tasks;
    then it is left alone.
    """

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path), [_task("1"), _task("2")])
        with pytest.raises(ValueError, match="b: 1 have no result yet"):
            await store.write(operations.published, Ref("b", "1"))
        await _finish(store, Ref("b", "1"))
        await store.write(TaskTransaction.finish, Ref("b", "2"), _finished(), attempt=None)
        with pytest.raises(ValueError, match="the result of 2 is not published"):
            await store.write(operations.batch_published, "b")
        with pytest.raises(ValueError, match="no such batch"):
            await store.write(operations.batch_published, "x")
        await store.write(operations.published, Ref("b", "2"))
        for _ in range(2):
            await store.write(operations.batch_published, "b")

    _run(scenario())
    assert store.read(lookups.restore).batches == ()


def test_old_events_are_pruned_and_the_file_shrinks(store: Store, tmp_path: Path) -> None:
    """After the retention, bodies go and their room with them; statuses, tokens and money stay."""
    path = tmp_path / "state" / "batchd.db"
    noise = "".join(chr(33 + i * i * 7 % 90) + str(i * 7919) for i in range(2000))

    async def fill() -> None:
        names = [str(i) for i in range(120)]
        for batch in ("old", "open"):
            await store.write(
                operations.add_batch, _batch(tmp_path, batch, batch), [_task(n) for n in names]
            )
            refs = [Ref(batch, n) for n in names]
            await asyncio.gather(*(store.write(operations.dispatch, r) for r in refs))
            events = _raw(_started(), _answered(), *(_tool(noise + str(i)) for i in range(10)))
            await asyncio.gather(*(store.record(r, 1, 0, events) for r in refs))
        await asyncio.gather(*(_finish(store, Ref("old", n)) for n in names))
        await store.write(operations.batch_published, "old")

    async def prune(now: float) -> None:
        await _prune(store, now - 7 * _DAY)

    _run(fill())
    _run(prune(_NOON + 6 * _DAY))
    assert len(store.read(lookups.events, Ref("old", "7"))) == 13
    _run(prune(_NOON + 8 * _DAY))
    assert store.read(lookups.events, Ref("old", "7")) == []
    with StoreReader(store.path) as reader:
        assert list(reader.results("old")) == []
    with pytest.raises(StoreError, match="old/7 has been pruned"):
        store.read(lookups.find_task, Ref("old", "7"))
    assert len(store.read(lookups.events, Ref("open", "7"))) == 12
    assert store.read(lookups.batch_money, "old") == SpentMoney(settled=240.0)
    with StoreReader(path) as reader:
        assert reader.task(Ref("old", "7")).status is TaskStatus.COMPLETED
    store.close()
    before = path.stat().st_size
    again = Store(path, clock=lambda: _NOON)

    async def the_rest() -> None:
        await asyncio.gather(*(_finish(again, Ref("open", str(i))) for i in range(120)))
        await again.write(operations.batch_published, "open")
        await _prune(again, _NOON)

    _run(the_rest())
    again.close()
    assert path.stat().st_size < before / 5


def test_reading_is_cheap_to_start() -> None:
    """A command that only reads the store loads none of what the daemon needs."""
    heavy = ["asyncio", "pydantic", "openai", "structlog", "tiktoken", "jsonschema", "rich"]
    code = f"import sys, batchd.store.queries; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
