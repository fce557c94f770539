"""Orders that wait, or whose giver has gone: refused with the reason,
or never carried out; judged by the store and the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loglines import logged
from patience import PATIENCE_S, until

from batchd import control
from batchd.control.socket_server import Requester
from batchd.errors import WithdrawnError
from batchd.records import Batch, Task
from batchd.store import lookups, operations
from batchd.store.queries import StoreReader
from batchd.store.store import Store

pytestmark = pytest.mark.in_turns

HANGS = {"model": "standin/hang"}
#: For what must happen some time.


class Post:
    """A spool, and ways to look at it."""

    def __init__(self, spool: Any) -> None:
        self.spool = spool
        self.state: Path = spool.folder / ".batchd"
        with (spool.folder / "config.toml").open("a") as file:
            file.write("[cost]\ncompare = []\n")

    def drop(self, name: str, *tasks: dict[str, Any]) -> None:
        """Put a file into the inbox."""
        own = [
            {"first_prompt": f"{self.spool.folder} {name} {i}", **t} for i, t in enumerate(tasks)
        ]
        inbox = self.spool.folder / "inbox"
        inbox.mkdir(exist_ok=True)
        self.spool.write("dropped", own).rename(inbox / f"{name}.json")

    def batches(self) -> dict[str, list[tuple[str, int]]]:
        """Return status and priority of the tasks of each batch, by the store."""
        with StoreReader(self.state / "batchd.db") as reader:
            return {
                row.batch.name: [(str(t.status), t.priority) for t in reader.tasks(row.batch.name)]
                for row in reader.batches()
            }

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind."""
        return logged(self.spool.folder / "daemon.log", event)

    def finished(self, batch: str) -> None:
        """Wait for a summary."""
        until((self.spool.folder / "outbox" / batch / "summary.json").exists)

    def say(self, verb: str, **arguments: Any) -> socket.socket:
        """Give an order as any program may, and return the connection."""
        sock = socket.socket(socket.AF_UNIX)
        with contextlib.chdir(self.state):
            sock.connect("control.sock")
        sock.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        return sock


@pytest.fixture
def post(spool: Any) -> Post:
    """A spool to give orders to."""
    return Post(spool)


@contextlib.contextmanager
def outbox_away(post: Post) -> Iterator[None]:
    """Have a file stand in the outbox's place meanwhile: no user can write there, not even root."""
    outbox = post.spool.folder / "outbox"
    outbox.rename(outbox.with_name("away"))
    outbox.write_text("in its place")
    try:
        yield
    finally:
        outbox.unlink()
        outbox.with_name("away").rename(outbox)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have a daemon stand still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("way", ["running", "without a daemon"])
def test_a_retry_that_the_outbox_cannot_take_is_refused_at_once(post: Post, way: str) -> None:
    """The answer names the path and the fix;
    nothing of the order happens once the outbox is back.
    """
    post.drop("past", {})
    with post.spool.serving():
        post.finished("past")
    serving = post.spool.serving if way == "running" else contextlib.nullcontext
    with serving():
        with outbox_away(post):
            for _ in range(2):
                refused = post.spool.batchd("retry", "past", "--yes")
                assert refused.returncode == 3, (refused.stdout, refused.stderr)
                said = " ".join(refused.stderr.split())
                assert "the order is not carried out: " in said
                assert str(post.spool.folder / "outbox") in said
                assert "put the folder back" in said
        assert post.spool.batchd("retry", "past", "--yes").returncode == 0
        if way == "running":
            post.finished("past-2")
    assert set(post.batches()) == {"past", "past-2"}


def test_an_order_whose_giver_has_gone_is_not_carried_out(post: Post) -> None:
    """Whatever its verb: it was given up while the daemon stood still.

    Who only sends no more still gets an answer.
    """
    post.drop("past", {})
    post.drop("games", HANGS, HANGS, HANGS)
    orders: list[tuple[str, dict[str, Any]]] = [
        ("retry", {"target": "past"}),
        ("pause", {"scope": "all"}),
        ("pause", {"scope": "batch", "name": "games"}),
        ("resume", {}),
        ("priority", {"target": "games", "priority": 7}),
        ("nice", {"target": "games", "by": 7}),
        ("cancel", {"target": "games"}),
        ("cancel", {"target": "games/003"}),
        ("prune", {"outbox": True}),
        ("tune", {"changes": {"pool.processes": "3"}}),
    ]
    with post.spool.serving() as process:
        post.finished("past")
        until(lambda: [s for s, _ in post.batches().get("games", ())].count("running") == 2)
        before = post.batches()
        with stopped(process):
            for verb, arguments in orders:
                post.say(verb, **arguments).close()
            patient = post.say("priority", target="games/003", priority=5)
            patient.shutdown(socket.SHUT_WR)
        with patient, patient.makefile() as stream:
            assert json.loads(stream.readline())["tasks"] == 1
        until(lambda: len(post.lines("command_refused")) == len(orders))
        assert all("has gone" in line["message"] for line in post.lines("command_refused"))
        before["games"][2] = ("queued", 5)
        assert post.batches() == before
        status = control.request(post.state, "status")
        assert (status["parked"], status["slots"]) == ([], 2)
        assert (post.spool.folder / "outbox/past/summary.json").exists()


def test_an_order_that_waits_says_so_and_can_be_given_up(post: Post) -> None:
    """The command says on stderr what it waits for, and at Ctrl-C what becomes of the order."""
    with post.spool.serving() as process, stopped(process):
        command = post.spool.command("pause", "--all")
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=post.spool.environment
        ) as giver:
            assert giver.stderr is not None
            assert select.select([giver.stderr], [], [], PATIENCE_S)[0], "it waits in silence"
            assert "not carried out yet" in giver.stderr.readline()
            giver.send_signal(signal.SIGINT)
            assert giver.wait(PATIENCE_S) == 130
            assert "you gave the order up" in giver.stderr.read()
    with post.spool.serving():
        assert control.request(post.state, "status")["parked"] == []


def test_an_order_is_dropped_while_it_waits_for_the_disk(tmp_path: Path) -> None:
    """The giver is looked for last of all, in the order's own transaction:
    a disk may have hung for minutes.
    """
    task = Task(id="001", first_prompt="", model="a/b")
    batch = Batch(
        name="games", claim="c", outbox=str(tmp_path), request="request.json", received_at=1.0
    )

    async def scenario() -> None:
        store = Store(tmp_path / "batchd.db")
        ours, theirs = socket.socketpair()
        hangs = threading.Event()
        stuck = store.writer.submit(lambda _: hangs.wait(PATIENCE_S))
        by = Requester(0, 0, ours)
        by.insist()
        order = asyncio.ensure_future(
            store.write(operations.add_batch, batch, [task], check=by.insist)
        )
        await asyncio.sleep(0)
        theirs.close()
        hangs.set()
        with pytest.raises(WithdrawnError):
            await order
        assert await stuck
        assert store.read(lookups.claimed, "c") is None
        ours.close()
        store.close()

    asyncio.run(scenario())


def test_results_that_cannot_be_written_keep_no_command_waiting(post: Post) -> None:
    """Without a daemon, cancel is durable and answered all the same;
    the next daemon writes the results.
    """
    post.drop("games", HANGS)
    with post.spool.serving():
        until(lambda: "games" in post.batches())
    with outbox_away(post):
        done = post.spool.batchd("cancel", "games")
        assert done.returncode == 0, done.stderr
        assert "1 task cancelled" in done.stdout
        assert "results cannot be written" in done.stderr
        assert "put the folder back" in " ".join(done.stderr.split())
    with post.spool.serving():
        post.finished("games")
    assert post.spool.result("games", "001")["status"] == "cancelled"
