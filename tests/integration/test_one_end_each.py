"""A task that several would end at once has one end and one result,
and nothing appears in a folder after its summary.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from dropping import batch_done, submit
from patience import PATIENCE_S

from batchd import config, control
from batchd.control import Cancel, Cancelled
from batchd.control.socket_server import Requester
from batchd.daemon import Daemon, Listener
from batchd.daemon.daemon import Daemon as Parts
from batchd.errors import NotPossibleError, UsageError, WithdrawnError
from batchd.events import CancelRequested, Event, TaskFinished, TaskStarted, Terms, encode
from batchd.lifecycle import Phase, inputs
from batchd.lifecycle.effects import End
from batchd.records import Batch, BatchNaming, ModelSetup, Reason, Ref, Task, TaskStatus
from batchd.spool import outbox
from batchd.store import lookups, operations
from batchd.store.queries import StoreReader
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

T = TypeVar("T")

_CONFIG = """\
[agent]
model = "standin/steps-1"
[providers.standin]
base_url = "http://127.0.0.1:9/v1"
[evaluation]
by = "none"
"""


class Watch(Listener):
    """Counts durable and published ends."""

    def __init__(self) -> None:
        self.durable: list[Ref] = []
        self.published: list[Ref] = []

    def task_event(self, ref: Ref, event: Event) -> None:
        """Count."""
        if isinstance(event, TaskFinished):
            self.durable.append(ref)

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Count."""
        self.published.append(ref)


def opened(folder: Path, watch: Watch) -> Daemon:
    """Return a daemon that runs no tasks."""
    (folder / "config.toml").write_text(_CONFIG)
    return Daemon(config.load(folder / "config.toml", {}), work=False, listeners=[watch])


def request(count: int) -> bytes:
    """Return a task file."""
    return json.dumps({"tasks": [{"first_prompt": f"task {i}"} for i in range(count)]}).encode()


@pytest.mark.parametrize("count", [1, 3])
def test_orders_and_outages_that_end_a_task_at_once_make_one_end(
    tmp_path: Path, count: int
) -> None:
    """Orders to cancel, beside a daemon that ends the same tasks itself:
    each publishes nothing that another did.
    """
    watch = Watch()

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            batch = await submit(daemon, "games.json", request(count))
            refs = [Ref(batch.name, f"{i:03d}") for i in range(1, count + 1)]
            many = parts.publisher.finish_all([*_given_up(parts, refs)], parts.store.write)
            orders = [order(parts, "games") for _ in range(3)]
            for refused in await asyncio.gather(*orders, many, return_exceptions=True):
                # All may be over when an order gets its turn.
                assert not isinstance(refused, Exception) or isinstance(refused, UsageError)
            await batch_done(daemon, "games")
            summary = tmp_path / "outbox/games/summary.json"
            written = summary.stat().st_mtime_ns
            # What comes after the batch's end changes nothing.
            for ref in refs:
                parts.attempts.cancel(ref, "away")
                assert not [*_given_up(parts, [ref])]
            await parts.loop.idle(lambda: ())
            assert max(p.stat().st_mtime_ns for p in summary.parent.iterdir()) == written

    asyncio.run(scenario())
    assert len(watch.durable) == len(set(watch.durable)) == count
    assert sorted(watch.published) == sorted(watch.durable)
    summary = json.loads((tmp_path / "outbox/games/summary.json").read_bytes())
    assert sum(summary["counts"].values()) == summary["total"] == count


def _given_up(parts: Parts, refs: Sequence[Ref]) -> Iterator[End]:
    """Yield the ends of tasks that can still be ended, each as it is asked for."""
    for ref in refs:
        end = End(ref, TaskStatus.ERROR, Reason.PROVIDER_UNAVAILABLE, "away")
        effects = parts.lifecycle.take(inputs.GiveUp(end))
        yield from (effect for effect in effects if isinstance(effect, End))


def _cancelled(parts: Parts, refs: Sequence[Ref]) -> Iterator[End]:
    """Yield the ends of tasks that an order ends, each as it is asked for."""
    for ref in refs:
        wish = CancelRequested(at=1.0, message="no")
        effects = parts.lifecycle.take(inputs.CancelOrdered(ref, wish))
        yield from (effect for effect in effects if isinstance(effect, End))


def parts_of(daemon: Daemon) -> Parts:
    """Return what a daemon is made of."""
    return daemon


class Gone(Requester):
    """Somebody who leaves while the order waits for the store."""

    def insist(self) -> None:
        """Be gone, once asked by the store's thread."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise WithdrawnError from None


async def _begun(parts: Parts, ref: Ref) -> None:
    """Have a task begin, and give its slot back."""
    given = await parts.store.write(operations.dispatch, ref)
    model = ModelSetup(name="standin/steps-1", price=None)
    started = encode(TaskStarted(at=1.0, terms=Terms(model=model, judge=model)))
    await parts.store.record(ref, given.attempt, 0, [msgspec.Raw(started)])
    await parts.store.write(operations.suspend, ref, given.attempt, TaskStatus.QUEUED)


async def order(parts: Any, *target: str, by: Requester | None = None) -> Cancelled:
    """Order the end of a batch."""
    request = Cancel(target=target, message="no")
    answer: Cancelled = await parts.commands.carry_out(request, by or Requester(uid=0, pid=0))
    return answer


def test_a_cancel_of_many_writes_the_results_that_single_ones_have(tmp_path: Path) -> None:
    """Over several transactions: every task has its result, its row and its place in the sums."""
    watch, count = Watch(), 1201

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "alone.json", request(1))
            await submit(daemon, "many.json", request(count))
            assert await order(parts, "alone") == Cancelled(cancelled=1)
            assert await order(parts, "many") == Cancelled(cancelled=count)
            await batch_done(daemon, "many")
            await batch_done(daemon, "alone")
            assert parts.lifecycle.unended == 0

    asyncio.run(scenario())
    outbox = tmp_path / "outbox"
    alone = json.loads((outbox / "alone/001.json").read_bytes())
    assert (alone["status"], alone["reason"], alone["error"]["message"]) == (
        "cancelled",
        "user",
        "no",
    )
    results = [
        json.loads(line) for line in (outbox / "many/results.jsonl").read_text().splitlines()
    ]
    assert {r["task"] for r in results} == {p.stem for p in outbox.glob("many/[0-9]*.json")}
    same = {k: v for k, v in alone.items() if k not in {"batch", "dir", "timing"}}
    assert {k: results[0][k] for k in same} == same
    assert not list(outbox.glob("many/.*"))
    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
        row = reader.batch("many")
        assert (row.tasks, row.finished) == (count, count)
        assert {str(t.status) for t in reader.tasks("many")} == {"cancelled"}


def test_a_cancel_that_is_given_up_leaves_its_tasks_as_they_were(tmp_path: Path) -> None:
    """The giver is gone when its turn at the disk comes:
    nothing has ended, and everything may start or be cancelled.
    """
    watch = Watch()

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "games.json", request(3))
            with pytest.raises(WithdrawnError):
                await order(parts, "games", by=Gone(0, 0))
            assert watch.durable == []
            assert parts.lifecycle.counts[Phase.QUEUED] == 3
            assert await order(parts, "games") == Cancelled(cancelled=3)
            await batch_done(daemon, "games")

    asyncio.run(scenario())
    assert len(watch.published) == 3


def test_results_that_are_written_lose_none_that_come_meanwhile(tmp_path: Path) -> None:
    """While the first results wait for their disk,
    more tasks of the batch end: all are published.
    """
    watch = Watch()

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            batch = await submit(daemon, "games.json", request(4))
            first, *others = (Ref("games", f"{i:03d}") for i in range(1, 5))
            free = threading.Event()
            busy = [
                asyncio.ensure_future(parts.outboxes.at(free.wait, batch.outbox)) for _ in "1234"
            ]
            await parts.publisher.finish_all([*_given_up(parts, [first])], parts.store.write)
            await asyncio.sleep(0)
            await parts.publisher.finish_all([*_given_up(parts, others)], parts.store.write)
            free.set()
            await asyncio.gather(*busy)
            await parts.loop.idle(lambda: ())
            assert parts.store.read(lookups.unfinished, "games") == len(parts.batches) == 0

    asyncio.run(scenario())
    assert len(watch.published) == 4


def test_what_is_cancelled_before_the_store_takes_no_more_is_published(tmp_path: Path) -> None:
    """Those that had not begun end in one transaction; the next one fails:
    they have their results, the other may end later.
    """
    watch = Watch()

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "games.json", request(3))
            refs = [Ref("games", f"{i:03d}") for i in range(1, 4)]
            await _begun(parts, refs[0])
            writes: list[object] = []

            async def once(work: Callable[..., T], *args: object, **kwargs: object) -> T:
                writes.append(work)
                if len(writes) > 1:
                    raise NotPossibleError("the disk is full")
                return await parts.store.write(work, *args, **kwargs)

            with pytest.raises(NotPossibleError):
                await parts.publisher.finish_all([*_cancelled(parts, refs)], once)
            await parts.loop.idle(lambda: ())
            assert sorted(watch.published) == refs[1:]
            await parts.publisher.finish_all([*_cancelled(parts, refs[:1])], parts.store.write)
            await batch_done(daemon, "games")

    asyncio.run(scenario())
    assert sorted(watch.published) == sorted(watch.durable)
    assert len(watch.published) == 3


def test_where_the_store_takes_no_more_all_that_are_left_may_still_run(tmp_path: Path) -> None:
    """Of many transactions the second fails: those of the third are no more ending, either."""
    watch, many = Watch(), 1201

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "games.json", request(many))
            refs = [Ref("games", f"{i:03d}") for i in range(1, many + 1)]
            first: list[int] = []

            async def once(work: Callable[..., T], *args: object, **kwargs: object) -> T:
                if first:
                    raise NotPossibleError("the disk is full")
                return await parts.store.write(work, *args, **kwargs)

            with pytest.raises(NotPossibleError):
                await parts.publisher.finish_all(
                    [*_cancelled(parts, refs)], once, begun=lambda: first.append(len(watch.durable))
                )
            assert first == [500]
            assert parts.lifecycle.counts[Phase.QUEUED] == many - 500
            assert await order(parts, "games") == Cancelled(cancelled=many - 500)
            await batch_done(daemon, "games")

    asyncio.run(scenario())
    assert len(watch.published) == len(set(watch.published)) == many


def test_a_batch_that_ends_while_an_order_goes_on_ends_nothing_else(tmp_path: Path) -> None:
    """Its tasks had begun, each ends by itself,
    and its summary is written before the order's last transaction.
    """
    watch, many = Watch(), 1201

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "begun.json", request(1))
            await submit(daemon, "many.json", request(many))
            await _begun(parts, Ref("begun", "001"))
            assert await order(parts, "begun", "many") == Cancelled(cancelled=many + 1)
            await batch_done(daemon, "begun")
            await batch_done(daemon, "many")
            await parts.loop.idle(lambda: ())

    asyncio.run(scenario())
    assert len(watch.published) == many + 1


def test_an_order_over_batches_that_is_given_up_leaves_all_of_them_as_they_were(
    tmp_path: Path,
) -> None:
    """No task of the batches that had not had their turn stays behind,
    and the next order ends them all.
    """
    watch = Watch()

    async def scenario() -> None:
        async with opened(tmp_path, watch) as daemon:
            parts = parts_of(daemon)
            await submit(daemon, "a.json", request(2))
            await submit(daemon, "b.json", request(2))
            with pytest.raises(WithdrawnError):
                await order(parts, "a", "b", by=Gone(0, 0))
            assert parts.lifecycle.counts[Phase.QUEUED] == 4
            assert await order(parts, "a", "b") == Cancelled(cancelled=4)

    asyncio.run(scenario())
    assert len(watch.published) == 4


def test_an_order_without_a_daemon_does_not_need_the_outbox(tmp_path: Path) -> None:
    """A dropped file that cannot be moved there stays claimed,
    and its batch open, for the next daemon.
    """
    watch = Watch()
    claim = tmp_path / ".batchd/claimed/01ARZ3NDEKTSV4RRFFQ69G5FAV-games.json"
    claim.parent.mkdir(parents=True)
    claim.write_bytes(request(1))

    folder, away = tmp_path / "outbox/games", tmp_path / "away"

    async def stored() -> None:
        async with opened(tmp_path, watch) as daemon:
            place = str(folder.parent)
            known = {"name": "games", "claim": claim.name[:26], "request": "request.json"}
            batch = Batch(**known, outbox=place, received_at=1.0)
            task = Task(id="001", first_prompt="x", model="standin/steps-1")
            assert outbox.reserve(batch, batch.name) is BatchNaming.OURS
            await daemon.store.write(operations.add_batch, batch, [task])

    async def published() -> None:
        async with opened(tmp_path, watch) as daemon:
            await batch_done(daemon, "games")

    asyncio.run(stored())
    folder.rename(away)
    folder.write_bytes(b"")
    order = opened(tmp_path, watch).command(Cancel(target="games"))
    assert asyncio.run(_carried_out(order)) == Cancelled(cancelled=1)
    assert claim.exists()
    folder.unlink()
    away.rename(folder)
    asyncio.run(published())
    assert not claim.exists()
    assert (folder / "request.json").exists()


async def _carried_out(order: Awaitable[T]) -> T:
    return await order


@pytest.mark.parametrize("amid", ["ends", "results"])
def test_a_kill_amid_a_cancel_loses_nothing_and_repeats_nothing(spool: Spool, amid: str) -> None:
    """What had ended stays as it was, byte for byte; the rest may be cancelled again,
    and each task has one end and one result, the one that ran too.
    """
    many, folder = 4000, spool.folder / "outbox/many"
    tasks = [{"first_prompt": f"task {i}", "model": "standin/hang"} for i in range(many)]
    names = {f"{i:03d}" for i in range(1, many + 1)}

    def ends() -> dict[str, str]:
        with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
            return dict(reader.results("many"))

    def finished() -> int:
        with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
            return reader.batch("many").finished

    def written() -> dict[str, str]:
        return {p.stem: p.read_text() for p in folder.glob("[0-9]*.json")}

    with spool.serving() as daemon:
        inbox = spool.folder / "inbox"
        spool.write("dropped", tasks).rename(inbox / "many.json")
        spool.eventually(lambda: status(spool)["running"])
        giver = subprocess.Popen(
            spool.command("cancel", "many"), env=spool.environment, stderr=subprocess.DEVNULL
        )
        spool.eventually(finished if amid == "ends" else (folder / "500.json").exists)
        giver.kill()  # else it gives the order again, without a daemon
        daemon.kill()
        daemon.wait()
        giver.wait(PATIENCE_S)
    before, there = ends(), written()
    assert len(there) < many
    assert amid == "results" or len(before) < many
    with spool.serving():
        if amid == "ends":
            assert spool.batchd("cancel", "many").returncode == 0
        spool.eventually((folder / "summary.json").exists)
    after = ends()
    assert before.items() <= after.items()
    assert there.items() <= after.items()
    assert written() == after
    assert set(after) == names
    assert spool.result("many", "summary")["counts"]["cancelled"] == many
    assert len((folder / "results.jsonl").read_text().splitlines()) == many


def status(spool: Spool) -> Any:
    """Return what a daemon says of itself."""
    return control.request(spool.folder / ".batchd", "status")
