"""The daemon's children for mirrors: one does several jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from patience import PATIENCE_S, until

from batchd.daemon import bases
from batchd.records import Origin, SandboxPolicy
from batchd.workspace.fetching import FetchJob
from batchd.workspace.mirrors import Mirror


def children() -> list[int]:
    """Return the numbers of those that there are."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            with contextlib.suppress(FileNotFoundError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                found += [pid] if b"batchd.workspace.fetching" in line else []
    return found


class Jobs:
    """Jobs for children: each copies a folder into a mirror of its own."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self._folder = folder
        for name in ("source", "mirrors"):
            (folder / name).mkdir()
        (folder / "source/a.txt").write_text("a\n")
        if os.geteuid() == 0:
            os.chown(folder / "source", 65534, 65534)
        self.children = bases.fetchers()

    async def done(self, name: str, source: str = "source") -> str:
        """Return why one could not be done; empty: it was."""
        mirror = Mirror(self._folder / "mirrors" / name)
        origin = Origin(kind="copy", source=str(self._folder / source))
        mirror.prepare(origin.source)
        job = FetchJob(
            origin=origin,
            kept=str(mirror.kept),
            fetch=True,
            policy=SandboxPolicy(),
            credentials="",
            timeout_s=PATIENCE_S,
            max_bytes=1 << 20,
        )
        outcome = await bases.carried_out(self.children, job, PATIENCE_S)
        assert outcome.error or outcome.commit
        return outcome.error


def test_one_child_does_one_job_after_another(tmp_path: Path) -> None:
    """Also behind one that failed; jobs of the same time have a child each,
    and none is left when the daemon ends.
    """

    async def work() -> None:
        jobs = Jobs(tmp_path)
        assert not await jobs.done("a")
        (child,) = children()
        assert await jobs.done("b", "nowhere") == "it is gone"
        assert not await jobs.done("b")
        assert children() == [child]
        assert not any(await asyncio.gather(*map(jobs.done, "cde")))
        assert len(children()) == 3
        await jobs.children.close()
        assert not children()

    asyncio.run(work())


def test_a_child_that_died_gets_no_job(tmp_path: Path) -> None:
    """One that dies at work is the job's error, one that dies without is none;
    one whose job is broken off is killed.
    """

    async def work() -> None:
        jobs = Jobs(tmp_path)
        assert not await jobs.done("a")
        (idle,) = children()
        resting = jobs.children.resting()
        assert resting
        os.kill(idle, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: not resting.alive)
        assert not await jobs.done("b")
        for end in (lambda _: os.kill(*children(), signal.SIGKILL), asyncio.Task.cancel):
            (child,) = children()
            os.kill(child, signal.SIGSTOP)
            job = asyncio.create_task(jobs.done("c"))
            await asyncio.sleep(0)
            end(job)
            await asyncio.wait({job})
            assert job.cancelled() or "has died: killed" in job.result()
            assert child not in children()
            assert not await jobs.done("c")
        await jobs.children.close()

    asyncio.run(work())
