"""Programs of batchd's own in a Python of their own:
what lies around them has no say in what they load.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S, until

from batchd import processes
from batchd.children import ChildBugError, ChildDiedError, Children

_SHOWS = """
import json, msgspec, sys
flags = sys.flags.isolated, sys.flags.no_site
print(json.dumps([json.__file__, *flags, sys.prefix, sys.argv[1:]]))
"""


def test_nothing_planted_is_loaded(tmp_path: Path) -> None:
    """Neither from the working directory, nor by a variable; what batchd needs is found."""
    for name in ("json.py", "msgspec.py", "sitecustomize.py", "usercustomize.py", "runpy.py"):
        (tmp_path / name).write_text("raise SystemExit('planted')")
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "json.py")}
    shows = processes.program(_SHOWS, "a b")
    for command in (shows, processes.module("batchd.spool.taskfile", "1")):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            input="",
        )
        assert "planted" not in done.stdout + done.stderr
    done = subprocess.run(
        shows,
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    found, *rest = json.loads(done.stdout)
    assert not found.startswith(str(tmp_path))
    assert rest == [1, 1, sys.prefix, ["a b"]]


def _runs(pid: bytes) -> bool:
    """Return whether it runs: an orphan may be this process's, which waits for none."""
    try:
        return Path("/proc", pid.decode(), "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_child_is_kept_for_the_next_job_and_killed_with_all_that_it_started() -> None:
    """One that has answered does the next job; one that hangs, dies or fails does none."""

    async def work() -> None:
        children = Children("strange_child", keep_s=PATIENCE_S)
        first = await children.ask(b"who", PATIENCE_S)
        assert await children.ask(b"who", PATIENCE_S) == first
        with pytest.raises(ChildBugError, match=r"^KeyError: 'what is missing'$") as bug:
            await children.ask(b"fail", PATIENCE_S)
        assert "in _answers" in bug.value.trace
        with pytest.raises(ChildDiedError, match="it exited with 3"):
            await children.ask(b"die", PATIENCE_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(PATIENCE_S) as limit, children.one() as child:
                await child.send(b"hang")
                started = await child.answer()
                assert _runs(started)
                limit.reschedule(0)
                await child.answer()
        await asyncio.to_thread(until, lambda: not _runs(started))
        last = await children.ask(b"who", PATIENCE_S)
        assert last != first
        await children.close()
        assert not _runs(last)

    asyncio.run(work())
