"""A worker with a good ticket that is not one of ours: it may spoil its task, and nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loglines import logged
from pools import configured, drop, invited, joined, running, summary
from strangers import Stranger, stranger

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns


@pytest.fixture
def cluster(tmp_path: Path, model_server: str) -> Spool:
    """A spool whose workers all join."""
    return configured(tmp_path, model_server)


def _record(who: Stranger, run: dict[str, Any], *events: Any) -> None:
    who.say("Record", ref=run["ref"], attempt=run["attempt"], seq=0, events=events)


def _started(run: dict[str, Any], at: float = 0.0) -> list[Any]:
    return ["TaskStarted", {"at": at or time.time(), "terms": run["terms"]}]


def _finished(result: str) -> list[Any]:
    fields = {"at": time.time(), "status": "completed", "reason": None, "result": result}
    return ["TaskFinished", fields]


def _answered(tokens: int) -> list[Any]:
    usage = {"calls": 1, "input_tokens": tokens, "output_tokens": 1}
    answer = {"content": "x", "usage": usage}
    return ["CallAnswered", {"at": time.time(), "purpose": "agent", "answer": answer}]


#: What each says that has a task.
LIES: dict[str, Callable[[Stranger, dict[str, Any]], None]] = {
    "no result": lambda who, run: _record(who, run, _started(run), _finished("{")),
    "an empty result": lambda who, run: _record(who, run, _started(run), _finished("{}")),
    "null": lambda who, run: _record(who, run, _started(run), _finished("null")),
    "a late time": lambda who, run: _record(who, run, _started(run, 1e308)),
    "an early time": lambda who, run: _record(who, run, _started(run, -1.0)),
    "tokens": lambda who, run: _record(who, run, _started(run), _answered(10**25)),
    "more tokens": lambda who, run: _record(who, run, _started(run), _answered(10**400)),
    "no event": lambda who, run: _record(who, run, ["Nonsense", {}]),
    "half an event": lambda who, run: _record(who, run, ["CallFailed", {"x": 1}]),
    "deep": lambda who, _: who.frame(b'["Record",' + b"[" * 100_000),
    "two at once": lambda who, run: [_record(who, run, _started(run)) for _ in range(9)] and None,
    "a huge frame": lambda who, _: who.begin(100 << 20),
    "another's message": lambda who, _: who.say("Drain"),
    "another ticket": lambda who, _: who.join(),
    "less than nothing": lambda who, run: who.say(
        "Ask",
        ref=run["ref"],
        attempt=run["attempt"],
        seq=0,
        events=[_started(run)],
        purpose="agent",
        model="standin/steps-3",
        input_tokens=-(10**9),
        max_output_tokens=10,
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_is_sent_away(cluster: Spool, lie: str) -> None:
    """Its connection is closed, the daemon goes on,
    and another worker does its task, as after a restart.
    """
    with cluster.serving() as daemon:
        with stranger(cluster) as (who, run):
            LIES[lie](who, run)
            assert not who.hear("nothing")
        who.close()
        assert daemon.poll() is None
        with joined(cluster, "node7"):
            assert summary(cluster)["counts"]["completed"] == 1
    with cluster.serving():
        assert "b" in cluster.batchd("status").stdout
        assert not cluster.batchd("logs", "b").returncode


def test_a_result_that_was_never_written_is_the_daemons_to_write(cluster: Spool) -> None:
    """A worker elsewhere that says it has published a result has not: its word is worth no file."""
    with cluster.serving():
        with stranger(cluster) as (who, run):
            who.say("Done", ref=run["ref"], attempt=run["attempt"], outcome="published")
            cluster.eventually(lambda: not running(cluster))
        with joined(cluster, "node7"):
            assert summary(cluster)["counts"]["completed"] == 1
        assert (cluster.folder / "outbox/b/001.json").exists()


def test_who_is_sent_away_and_stays_takes_nothing(cluster: Spool) -> None:
    """Connections of who never closes are closed for them:
    the daemon has as many descriptors as before.
    """
    with cluster.serving() as daemon:
        line = invited(cluster)
        folder = Path(f"/proc/{daemon.pid}/fd")
        before = len([*folder.iterdir()])
        strangers = [Stranger(line).join("wrong") for _ in range(8)]
        cluster.eventually(lambda: len([*folder.iterdir()]) <= before + 2)
        with joined(cluster, "node7", line):
            cluster.eventually(lambda: logged(cluster.folder / "daemon.log", "worker_started"))
        for each in strangers:
            each.close()


def test_a_worker_that_only_beats_its_heart_loses_what_is_cancelled(cluster: Spool) -> None:
    """The order waits for a bound, not for ever; the worker is sent away, and status says why."""
    with cluster.serving(), stranger(cluster) as (who, _), who.beating():
        done = cluster.batchd("cancel", "b")
        assert not done.returncode, done.stderr
        assert "it keeps b/001, which was cancelled" in " ".join(
            cluster.batchd("status").stdout.split()
        )
    assert cluster.result("b", "001")["status"] == "cancelled"


def test_a_worker_that_only_beats_its_heart_loses_what_is_over_its_time(cluster: Spool) -> None:
    """It is another one's then."""
    limits = {"timeout_s": 1, "call_timeout_s": 1, "tool_timeout_s": 1}
    with cluster.serving():
        made = Stranger(invited(cluster)).join().greet()
        drop(cluster, 1, limits=limits)
        assert made.hear("Run")
        with made.beating():
            cluster.eventually(lambda: logged(cluster.folder / "daemon.log", "node_trouble"))
        made.close()
        with joined(cluster, "node7"):
            assert sum(summary(cluster)["counts"].values()) == 1
    (said,) = logged(cluster.folder / "daemon.log", "node_trouble")
    assert "which is over its time" in said["message"]


def test_who_does_not_read_is_not_read(cluster: Spool) -> None:
    """What a worker makes the daemon hold by what it never reads is bounded,
    and its lease is over in the end.
    """
    with cluster.serving() as daemon, stranger(cluster) as (who, run):
        statm = Path(f"/proc/{daemon.pid}/statm")
        before = int(statm.read_text().split()[1])
        # Each is answered, with what names it.
        asked = {"ref": {"batch": "b" * 4000, "task": "x"}, "attempt": 1, "seq": 0, "events": ()}
        body = json.dumps(["Record", asked]).encode()
        piece = (len(body).to_bytes(4, "big") + body) * 100
        sent = who.flood(piece)
        grown = (int(statm.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
        assert sent < 64 << 20
        assert grown < 32 << 20
        assert run
        cluster.eventually(lambda: logged(cluster.folder / "daemon.log", "worker_died"))
    (died,) = logged(cluster.folder / "daemon.log", "worker_died")
    assert "no sign of life" in died["cause"]


def test_the_name_of_another_machine_is_its_own(cluster: Spool) -> None:
    """While its worker is there, a ticket holder at another address does not get it."""
    with cluster.serving():
        first = Stranger(invited(cluster, "127.0.0.0/8")).join().greet()
        line = invited(cluster, "127.0.0.0/8")
        other = Stranger(line, "127.0.0.2").join()
        why = other.hear("NotAdmitted")["message"]
        assert "the name stranger is in use by a worker from 127.0.0.1" in why
        assert "choose another with --node" in why
        again = Stranger(line, "127.0.0.1").join().greet()
        for each in (first, other, again):
            each.close()
