"""Batches that come after other batches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from batchd import config
from batchd.errors import TaskFileError
from batchd.spool import taskfile
from batchd.spool.outbox import batch_name
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns


def drop(spool: Any, name: str, *tasks: dict[str, Any], **batch: Any) -> None:
    """Drop a file, and wait until its batch is in the store."""
    done = spool.batchd("submit", spool.write(f"{name}.json", list(tasks), **batch))
    assert done.returncode == 0, done.stderr
    spool.eventually((spool.folder / f"outbox/{name}/request.json").exists)


def why(spool: Any, target: str) -> str:
    """Return what `status` says that a task waits for."""
    shown: str = json.loads(spool.batchd("status", target, "--json").stdout)["why"]
    return shown


def ended(spool: Any, name: str) -> list[tuple[str, str | None]]:
    """Return how the tasks of a batch ended, once they have."""
    folder = spool.folder / "outbox" / name
    spool.eventually((folder / "summary.json").exists)
    results = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return [(result["status"], result["reason"]) for result in results]


def test_a_batch_waits_until_others_have_completed(spool: Any) -> None:
    """Also over a restart of the daemon;
    none of its tasks starts before, and each one ends after.
    """
    hanging = {"first_prompt": "y", "model": "standin/hang"}
    with spool.serving():
        drop(spool, "done", {"first_prompt": "x"})
        assert ended(spool, "done") == [("completed", None)]
        drop(spool, "first", {"first_prompt": "x"}, hanging)
        drop(
            spool,
            "second",
            {"first_prompt": "a"},
            {"first_prompt": "b"},
            after_batches=["done", "first"],
        )
        spool.eventually((spool.folder / "outbox/first/001.json").exists)
    with spool.serving(), StoreReader(Path(spool.folder, ".batchd/batchd.db")) as reader:
        spool.eventually(lambda: [t.ref.task for t in reader.running()] == ["002"])
        assert [task.status for task in reader.tasks("second")] == ["queued", "queued"]
        assert why(spool, "second/001") == "comes after the batch first"
        assert "comes after the batch first" in spool.batchd("status", "second").stdout
        # A task that is cancelled has not completed.
        drop(spool, "third", {"first_prompt": "c"}, after_batches=["first"])
        assert spool.batchd("cancel", "first/002").returncode == 0
        gone = ("cancelled", "dependency")
        assert ended(spool, "second") == [gone, gone]
        assert ended(spool, "third") == [gone]
        drop(spool, "fourth", {"first_prompt": "x"}, after_batches=["first"])
        assert ended(spool, "fourth") == [gone]
        drop(spool, "été", {"first_prompt": "slow"}, {"first_prompt": "x"})
        drop(spool, "sixth", {"first_prompt": "x"}, after_batches=["été", "done"])
        assert ended(spool, "sixth") == [("completed", None)]
        begun = min(task.started_at for task in reader.tasks("sixth"))
        assert begun >= max(task.finished_at for task in reader.tasks("été"))


def test_a_retry_waits_for_what_is_under_way_of_what_its_batch_came_after(spool: Any) -> None:
    """Also for a later run of that, and as the request says that is written for it.

    What has ended, however, keeps nobody: who orders the retry has seen it.
    """
    hanging = {"first_prompt": "y", "model": "standin/hang"}
    with spool.serving():
        drop(spool, "first", hanging)
        drop(spool, "second", {"first_prompt": "x"}, after_batches=["first"])
        assert spool.batchd("cancel", "second").returncode == 0
        assert ended(spool, "second") == [("cancelled", "user")]
        (spool.folder / "outbox/second/request.json").unlink()
        assert "second-2" in spool.batchd("retry", "second").stdout
        assert why(spool, "second-2/001") == "comes after the batch first"
        request = spool.folder / "outbox/second-2/request.json"
        spool.eventually(request.exists)
        assert json.loads(request.read_text())["after_batches"] == ["first"]
        assert spool.batchd("cancel", "first").returncode == 0
        assert ended(spool, "second-2") == [("cancelled", "dependency")]
        assert "first-2" in spool.batchd("retry", "first").stdout
        assert "second-3" in spool.batchd("retry", "second").stdout
        assert why(spool, "second-3/001") == "comes after the batch first-2"
        assert spool.batchd("cancel", "first-2").returncode == 0
        assert ended(spool, "second-3") == [("cancelled", "dependency")]
        assert "second-4" in spool.batchd("retry", "second-3").stdout
        assert ended(spool, "second-4") == [("completed", None)]


def test_an_unknown_batch_is_refused_when_the_file_is_taken_up(spool: Any) -> None:
    """It could never start: the refusal says where, the name and what to do."""
    with spool.serving():
        path = spool.write("late.json", [{"first_prompt": "x"}], after_batches=["nightly"])

        def refused(*options: str) -> Any:
            # Who only drops a file waits a second for its batch's name.
            tries = (spool.batchd("submit", *options, path) for _ in range(60))
            return next(done for done in tries if done.returncode == 2)

        head, problem = refused().stderr.splitlines()
        assert re.fullmatch(r"Refused, as late(-\d+)?:", head)
        assert "there is no batch 'nightly'" in problem
        shown = refused("--json")
        assert json.loads(shown.stdout)["batch"].startswith("late-")
        assert "'nightly'" in str(json.loads(shown.stdout)["problems"])
        spool.eventually((spool.folder / "outbox/late/summary.json").exists)
    (problem,) = spool.result("late", "summary")["errors"]
    assert "after_batches[0]" in str(problem)
    assert "there is no batch 'nightly'" in str(problem)


def test_a_name_that_no_batch_can_have_is_an_error() -> None:
    """Of a path, or nothing at all; each that one has can be named."""
    files = ("été.json", "日本.json", "_x.json", f"{'x' * 200}.json", "½ नमस्ते.json", ".json")
    for name in [batch_name(file) for file in files] + ["日" * 33 + "-12"]:
        data = json.dumps({"tasks": [{"first_prompt": "x"}], "after_batches": [name]}).encode()
        assert taskfile.parse(data, "b.json", config.Config()).after_batches == (name,)
    for name in ("../x", "", "a b", "x" * 101, "a\n", "a.b", "[a]", "a`b", "{a}", "a\\b"):
        data = json.dumps({"tasks": [{"first_prompt": "x"}], "after_batches": [name]}).encode()
        with pytest.raises(TaskFileError, match=r"after_batches\[0\]"):
            taskfile.parse(data, "b.json", config.Config())


def test_files_that_were_dropped_one_after_the_other_come_after_one_another(spool: Any) -> None:
    """Also where no daemon ran then: the second is looked at once the first is stored.

    A refused file never completes.
    """
    (spool.folder / "inbox").mkdir(exist_ok=True)
    inbox = spool.folder / "inbox"
    (inbox / "a.json").write_text(json.dumps({"tasks": [{"first_prompt": "x"}] * 50}))
    (inbox / "b.json").write_text(
        json.dumps({"tasks": [{"first_prompt": "y"}], "after_batches": ["a"]})
    )
    (inbox / "c.json").write_text("{")
    with spool.serving():
        assert ended(spool, "b") == [("completed", None)]
        drop(spool, "d", {"first_prompt": "z"}, after_batches=["c"])
        assert ended(spool, "d") == [("cancelled", "dependency")]
