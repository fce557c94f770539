"""Workers that join from other machines: each one here is on this machine, over TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any, TypeVar

import pytest
from loglines import logged
from patience import PATIENCE_S
from pools import (
    LEASE_S,
    asked,
    configured,
    drop,
    invited,
    joined,
    nodes,
    processes,
    running,
    summary,
)

from batchd import __version__, config, wire
from batchd.agent import AgentServices, AttemptEnd
from batchd.daemon import tuning
from batchd.events import Terms
from batchd.pool.channel import Channel
from batchd.pool.joining import ticket
from batchd.pool.worker import Worker
from batchd.records import Batch, ModelSetup, Ref, Task
from batchd.taskstate import TaskState
from tests.conftest import Spool

T = TypeVar("T")

pytestmark = pytest.mark.in_turns


@pytest.fixture
def cluster(tmp_path: Path, slow_server: str) -> Spool:
    """A spool without processes of its own,
    whose model takes a moment for each of three answers.
    """
    return configured(tmp_path, slow_server)


def refused(cluster: Spool, line: str) -> str:
    """Return what a worker says that is not let in."""
    with joined(cluster, "stranger", line) as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode, said
    return said


def test_a_worker_of_another_machine_does_the_work(cluster: Spool) -> None:
    """Its tasks end as on this machine, with result, transcript and money;
    log and status name the node.
    """
    with cluster.serving(), joined(cluster, "node7"):
        cluster.eventually(lambda: "node7" in nodes(cluster))
        drop(cluster, 3)
        assert summary(cluster)["counts"]["completed"] == 3
        assert cluster.result("b", "001")["usage"]["calls"] == 3
        assert (cluster.folder / "outbox/b/001.jsonl").exists()
    started = logged(cluster.folder / "daemon.log", "worker_started")
    assert [line["node"] for line in started] == ["node7"]
    ended = logged(cluster.folder / "daemon.log", "task_finished")
    assert {line["node"] for line in ended} == {"node7"}
    assert "model standin/steps-3, on node7" in cluster.batchd("logs", "b/001").stdout
    assert "model standin/steps-3, on node7" in cluster.batchd("logs", "b").stdout


def test_the_report_says_which_node_did_what(cluster: Spool) -> None:
    """How many tasks, how long each took there, what they cost."""
    with cluster.with_reports().serving(), joined(cluster, "node7"):
        drop(cluster, 2)
        summary(cluster)
        page = cluster.folder / "outbox/b/report.html"
        cluster.eventually(page.exists)
    assert '"nodes":[{"name":"node7","tasks":2,' in page.read_text()


def test_tasks_that_wait_for_a_first_worker_are_reported(cluster: Spool) -> None:
    """With the command that starts one; afterwards all is well."""
    with cluster.serving():
        drop(cluster, 1)
        cluster.eventually(lambda: "no worker has joined" in cluster.batchd("status").stdout)
        assert "batchd invite NODE" in cluster.batchd("status").stdout
        with joined(cluster, "node7"):
            summary(cluster)
            assert "Trouble" not in cluster.batchd("status").stdout


def test_a_run_of_its_own_needs_no_other_machine(cluster: Spool) -> None:
    """`batchd run` works with a process of this machine where the configuration has none."""
    file = cluster.write("one.json", [{"first_prompt": "write it"}])
    done = cluster.batchd("run", file)
    assert not done.returncode, done.stderr


def test_a_ticket_is_good_once(cluster: Spool) -> None:
    """Who comes with one that was used is sent away, and the log says so."""
    with cluster.serving():
        line = invited(cluster)
        with joined(cluster, "first", line):
            cluster.eventually(lambda: "first" in nodes(cluster))
            assert "its ticket was used before" in refused(cluster, line)
            assert set(nodes(cluster)) == {"first"}
    (said,) = logged(cluster.folder / "daemon.log", "worker_not_admitted")
    assert said["address"] == "127.0.0.1"


def test_a_ticket_is_good_on_its_machine_alone(cluster: Spool) -> None:
    """From another address its token is worth nothing."""
    with cluster.serving():
        said = refused(cluster, invited(cluster, "10.0.0.0/8"))
    assert "its ticket is for 10.0.0.0/8, and it comes from 127.0.0.1" in said


def test_a_worker_shows_its_token_to_no_other_daemon(cluster: Spool) -> None:
    """What has another certificate than the ticket's gets nothing, and the token stays good."""
    with cluster.serving():
        line = invited(cluster)
        good = ticket.parse(line)
        assert "is not the daemon of this ticket" in refused(
            cluster, line.replace(good.fingerprint, "0" * 64)
        )
        with joined(cluster, "node7", line):
            cluster.eventually(lambda: "node7" in nodes(cluster))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 8,
        b"\xff\xff\xff\xff" + b"x" * 100,
        wire.pack(wire.Heartbeat()),
        wire.pack(wire.Heartbeat()) * 2,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["zeros", "huge", "heartbeat", "two", "http"],
)
def test_who_shows_no_ticket_learns_nothing(cluster: Spool, sent: bytes) -> None:
    """The connection is closed without a byte, and workers with a ticket join as before."""
    with cluster.serving():
        good = ticket.parse(invited(cluster))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((good.host, good.port)) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.settimeout(PATIENCE_S)
            secure.sendall(sent)
            with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
                assert secure.recv(1) == b""
        with joined(cluster, "node7", str(good)):
            cluster.eventually(lambda: "node7" in nodes(cluster))


def test_the_tasks_of_a_killed_worker_go_on_elsewhere(cluster: Spool, slow_server: str) -> None:
    """Each has one result, and no answer that was recorded is paid again."""
    with cluster.serving(), joined(cluster, "one") as one, joined(cluster, "two"):
        cluster.eventually(lambda: len(nodes(cluster)) == 2)
        drop(cluster, 4)
        cluster.eventually(lambda: "one" in running(cluster).values())
        lost = [task for task, node in running(cluster).items() if node == "one"]
        os.kill(one.pid, signal.SIGKILL)
        assert summary(cluster)["counts"]["completed"] == 4
        cluster.eventually(lambda: not processes("one", cluster))
    spent = [cluster.result("b", f"{n:03}")["usage"] for n in range(1, 5)]
    assert len(lost) == 1
    # The call in flight may have been paid, and is asked once more.
    assert 12 <= sum(asked(slow_server).values()) <= 13
    assert [each["calls"] for each in spent] == [3] * 4
    # What is lost with its machine is no task's fault.
    assert all(cluster.result("b", f"{n:03}")["attempts"] <= 2 for n in range(1, 5))


def test_a_keeper_that_sees_its_worker_end_frees_its_tasks_at_once(cluster: Spool) -> None:
    """The lease protects nothing any more: the task goes on,
    though the lease is longer than this test waits for anything.
    """
    config = cluster.folder / "config.toml"
    config.write_text(config.read_text().replace(f"= {LEASE_S}", f"= {2 * PATIENCE_S}"))
    with cluster.serving(), joined(cluster, "one"), joined(cluster, "two"):
        cluster.eventually(lambda: len(nodes(cluster)) == 2)
        drop(cluster, 2)
        cluster.eventually(lambda: len(running(cluster)) == 2)
        os.kill(nodes(cluster)["one"], signal.SIGKILL)
        assert summary(cluster)["counts"]["completed"] == 2
    (died,) = logged(cluster.folder / "daemon.log", "worker_died")
    assert died["node"] == "one"


def test_a_task_that_killed_the_only_worker_waits_for_another(cluster: Spool) -> None:
    """It has a process of its own next, and never on the daemon's machine,
    where the configuration allows none.
    """
    with cluster.serving():
        with joined(cluster, "one"):
            cluster.eventually(lambda: "one" in nodes(cluster))
            drop(cluster, 2)
            cluster.eventually(lambda: running(cluster))
            os.kill(nodes(cluster)["one"], signal.SIGKILL)
            cluster.eventually(lambda: logged(cluster.folder / "daemon.log", "worker_died"))
        with joined(cluster, "two"):
            assert summary(cluster)["counts"]["completed"] == 2
    ended = logged(cluster.folder / "daemon.log", "task_finished")
    assert [line.get("node") for line in ended] == ["two", "two"]


def test_a_frozen_node_that_thaws_changes_nothing(cluster: Spool, slow_server: str) -> None:
    """After its lease its task is another's; as it goes on,
    its keeper ends it, and all that it had started.
    """
    with cluster.serving(), joined(cluster, "one") as one:
        cluster.eventually(lambda: "one" in nodes(cluster))
        drop(cluster, 1)
        cluster.eventually(lambda: "b/001" in running(cluster))
        frozen = processes("one", cluster)
        assert len(frozen) >= 2
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        with joined(cluster, "two"):
            assert summary(cluster)["counts"]["completed"] == 1
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):  # who wakes first ends the others
                    os.kill(pid, signal.SIGCONT)
            _, said = one.communicate(timeout=PATIENCE_S)
            assert one.returncode == 3, said
            assert not processes("one", cluster)
    result = cluster.result("b", "001")
    assert result["attempts"] == 2
    assert 3 <= sum(asked(slow_server).values()) <= 4


def test_a_longer_silence_ends_no_worker_that_has_joined(cluster: Spool) -> None:
    """Its lease is what it was when the daemon began,
    however seldom the workers of the daemon's own machine may beat from now on.
    """
    with cluster.serving(), joined(cluster, "one") as one:
        cluster.eventually(lambda: "one" in nodes(cluster))
        cluster.batchd("tune", "pool.heartbeat_timeout_s=600")
        time.sleep(2 * LEASE_S)
        assert one.poll() is None
        drop(cluster, 1)
        assert summary(cluster)["counts"]["completed"] == 1
    assert not logged(cluster.folder / "daemon.log", "worker_died")


def test_the_next_daemon_waits_for_a_lease_that_it_cannot_see_the_end_of(cluster: Spool) -> None:
    """A node is cut off as its daemon dies:
    what it worked on is not begun again before its lease is over.
    """
    with cluster.serving() as daemon, joined(cluster, "one") as one:
        cluster.eventually(lambda: "one" in nodes(cluster))
        drop(cluster, 1)
        cluster.eventually(lambda: "b/001" in running(cluster))
        frozen = processes("one", cluster)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
        daemon.wait()
        with cluster.serving(), joined(cluster, "two"):
            begun = time.monotonic()
            cluster.eventually(lambda: "two" in nodes(cluster))
            assert summary(cluster)["counts"]["completed"] == 1
            assert time.monotonic() - begun > LEASE_S
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):  # who wakes first ends the others
                    os.kill(pid, signal.SIGCONT)
            assert one.wait(PATIENCE_S) == 3
    assert cluster.result("b", "001")["attempts"] == 2


def test_a_worker_whose_keeper_was_stopped_works_on(cluster: Spool) -> None:
    """As on a machine that sleeps for a second: nothing has asked it to end, until SIGTERM does."""
    with cluster.serving(), joined(cluster, "one") as keeper:
        cluster.eventually(lambda: "one" in nodes(cluster))
        for _ in range(3):
            os.kill(keeper.pid, signal.SIGSTOP)
            time.sleep(1)  # longer than it waits for signals at a time
            os.kill(keeper.pid, signal.SIGCONT)
        drop(cluster, 1)
        assert summary(cluster)["counts"]["completed"] == 1
        assert "one" in nodes(cluster)
        keeper.send_signal(signal.SIGTERM)
        _, said = keeper.communicate(timeout=PATIENCE_S)
        assert keeper.returncode == 0, said


def test_a_node_that_is_drained_gives_its_tasks_back(cluster: Spool) -> None:
    """SIGTERM: at their next durable points they are others',
    no attempt of theirs counts as a crash, and the worker ends with 0.
    """
    with cluster.serving(), joined(cluster, "one") as one:
        cluster.eventually(lambda: "one" in nodes(cluster))
        drop(cluster, 2)
        cluster.eventually(lambda: running(cluster))
        one.send_signal(signal.SIGTERM)
        _, said = one.communicate(timeout=PATIENCE_S)
        assert (one.returncode, said) == (0, "")
        with joined(cluster, "two"):
            assert summary(cluster)["counts"]["completed"] == 2
    assert not logged(cluster.folder / "daemon.log", "worker_died")


def test_a_task_that_is_on_its_way_to_a_worker_that_leaves_comes_back(cluster: Spool) -> None:
    """The daemon may hand one out in the moment in which the worker says that it leaves:
    it gives that one back too, and ends once the daemon knows.
    """
    settings = tuning.settings(config.load(cluster.folder / "config.toml", {}), {})
    setup = ModelSetup(name="standin/steps-3")
    batch = Batch(name="b", claim="c", outbox="/", request="r", received_at=0.0)
    run = wire.Run(
        ref=Ref("b", "001"),
        attempt=1,
        task=Task(id="001", first_prompt="x", model=setup.name),
        batch=batch,
        terms=Terms(model=setup, judge=setup, agents_md=False),
        queued_at=0.0,
    )

    async def given_back(_run: wire.Run, host: AgentServices) -> AttemptEnd:
        return AttemptEnd(
            "suspended" if host.stop.requested else "finished", TaskState(first_prompt="x"), ()
        )

    async def play() -> None:
        ours, theirs = socket.socketpair()
        said: asyncio.Queue[Any] = asyncio.Queue()
        daemon = Channel(said.put_nowait, said.put_nowait)
        await daemon.attach(ours)
        worker = Worker(given_back)
        working = asyncio.create_task(worker.work(lambda channel: channel.attach(theirs)))

        async def heard(kind: type[T]) -> T:
            while not isinstance(message := await said.get(), kind):
                assert not isinstance(message, str), "it has closed its connection"
            return message

        daemon.send(wire.Hello(version=__version__, settings=settings))
        await heard(wire.Hello)
        worker.leave("its machine asked it to end")
        await heard(wire.Leaving)
        daemon.send(run)
        assert (await heard(wire.Done)).outcome == "suspended"
        assert not working.done()
        daemon.send(wire.Drain())
        assert await working == 0
        daemon.close()

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


def test_workers_end_with_their_daemon(cluster: Spool) -> None:
    """Also where that is killed: nothing of theirs goes on."""
    with cluster.serving() as daemon, joined(cluster, "one") as one:
        cluster.eventually(lambda: "one" in nodes(cluster))
        drop(cluster, 1, check="sleep 1")
        cluster.eventually(lambda: running(cluster))
        daemon.kill()
        _, said = one.communicate(timeout=PATIENCE_S)
        assert one.returncode == 3
        assert "the connection to the daemon was closed" in said
        cluster.eventually(lambda: not processes("one", cluster))
