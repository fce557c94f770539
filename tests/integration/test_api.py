"""``import batchd``: a batch from a program, whose results are objects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import batchd
from batchd.errors import NoDaemonError, TaskFileError, UnknownNameError, UsageError

TWO = {"tasks": [{"id": "a", "first_prompt": "x"}, {"id": "b", "first_prompt": "y"}]}
SLOW = {"tasks": [{"first_prompt": "x", "check": "sleep 300"}]}


def test_results_are_objects(spool: Any) -> None:
    """A file, a dict and a prompt are dropped and waited for; what comes back has types, in the
    order of the tasks, and flat columns for a table; an earlier batch is found by its name.
    """
    config = spool.folder / "config.toml"
    path = spool.write("games.json", TWO["tasks"])
    with spool.serving():
        one = batchd.submit(path, config=config)
        results = one.wait(timeout=60)
        assert [(r.task, r.status.value, r.usage.calls) for r in results] == [
            ("a", "completed", 2),
            ("b", "completed", 2),
        ]
        assert (one.name, one.status, one.results) == ("games", "completed", results)
        assert repr(one) == "<batchd.Batch games: completed>"
        (row, _) = msgspec.to_builtins(results)
        assert (row["answer"], row["usage"]["calls"]) == (results[0].answer, 2)
        two = batchd.submit(TWO, spool=spool.folder, name="mine")
        (answer,) = batchd.submit(prompt="say hello", check="true", spool=spool.folder).wait()
        assert answer.first_prompt == "say hello"
        assert [r.task for r in two.wait()] == ["a", "b"]
    again = batchd.batch("games", spool=spool.folder)
    assert again.results == again.wait() == results
    (spool.folder / "outbox/games/results.jsonl").unlink()
    with pytest.raises(batchd.BatchdError, match="somebody has collected"):
        again.wait()


def test_what_goes_wrong_is_said_as_on_the_command_line(spool: Any) -> None:
    """Wrong use and wrong files drop nothing; a wait ends without a daemon, or in time; cancel
    ends a batch, and its results say so.
    """
    where = {"spool": spool.folder}
    with pytest.raises(TaskFileError) as wrong:
        batchd.submit({"tasks": [{"first_promt": "x"}]}, **where)
    assert "do you mean first_prompt" in str(wrong.value)
    for file, more in (
        (None, {}),
        (TWO, {"model": "standin/x"}),
        (TWO, {"config": "x.toml"}),
        (None, {"prompt": " "}),
        (None, {"prompt": "x", "modle": "y"}),
        ("absent.json", {}),
    ):
        with pytest.raises(UsageError):
            batchd.submit(file, **where, **more)
    with pytest.raises(UnknownNameError, match="there is no batch evening"):
        batchd.batch("evening", **where)
    assert not list(spool.folder.glob("inbox/*"))
    waiting = batchd.submit(SLOW, **where)
    assert (waiting.name, waiting.status, waiting.results) == ("", "queued", [])
    with pytest.raises(NoDaemonError, match="start `batchd serve`"):
        waiting.wait()
    with spool.serving():
        spool.eventually(lambda: waiting.status == "running")
        with pytest.raises(TimeoutError):
            waiting.wait(timeout=0.01)
        waiting.cancel("enough")
        (ended,) = waiting.wait()
    assert (ended.status.value, ended.error.message) == ("cancelled", "enough")


def test_the_import_is_light() -> None:
    """`import batchd` loads nothing until something of it is used."""
    program = (
        "import sys; before = {*sys.modules}; import batchd; "
        "print(sorted(m for m in {*sys.modules} - before if 'batchd.' in m or m == 'asyncio')); "
        "print(batchd.submit.__module__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert found.stdout == "['batchd.version']\nbatchd.api\n"
