"""What runs out comes back: disk, descriptors, processes.

Until then nothing is lost, and nothing is paid twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import CALLS, MODELS, Arena, Model, arena, tasks, until
from repositories import git, repository
from verdict import Figures, judge

pytestmark = pytest.mark.in_turns

_COUNT = 40
#: What the daemon meets first on a full disk is a matter of moments: the store that takes no event,
#: or the outbox, which needs more room before a task may start.
_MET = ("store_trouble", "outbox_trouble")


def _finish(place: Arena, model: Model, folder: Path) -> Figures:
    """Wait for the batch's end, stop the daemon, and judge."""
    until((folder / "summary.json").exists, 60, place.tail)
    place.stop()
    until(lambda: not place.processes(), 5, lambda: f"orphans: {place.processes()}")
    figures = judge(folder, model.log(), _COUNT)
    print(f"\n{figures}")
    ends = [e for f in folder.glob("[0-9]*.json") if (e := json.loads(f.read_text())["error"])]
    assert not ends, ends
    assert figures.calls == _COUNT * CALLS
    assert figures.statuses == {"completed": _COUNT}
    return figures


def _under_way(place: Arena, model: Model, requests: int) -> Path:
    """Start a daemon and a batch; return its folder once the server has had some requests."""
    place.start()
    folder = place.drop("c", tasks(_COUNT))
    until(lambda: len(model.log()) >= requests, 30, place.tail)
    return folder


@contextlib.contextmanager
def _small_disk(place: Arena) -> Iterator[Path]:
    """Mount a small disk in a spool: with room for a report, which leaves the store its own."""
    small = place.folder / "small"
    small.mkdir()
    options = "size=96m,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, place.mark, small], check=True)
    try:
        yield small
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def _fill(small: Path) -> None:
    """Take all room there is, and what is freed within a moment."""
    ballast = small / "ballast"
    for piece in (1 << 16, 1 << 12):
        for _ in range(3):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(piece))
            time.sleep(0.02)


def _filled_for_good(small: Path, place: Arena, model: Model) -> Path:
    """Fill the disk until the daemon has met that, and calls under way have ended:
    each takes half a second, and what is freed meanwhile is taken too.
    """
    seen = -1

    def stands_still() -> bool:
        nonlocal seen
        before, seen = seen, len(model.log())
        _fill(small)
        time.sleep(1.0)
        return seen == before and any(trouble in place.log.read_text() for trouble in _MET)

    until(stands_still, 30, place.tail)
    return small / "ballast"


@pytest.mark.sampled(1)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("killed", [False, True], ids=["waits", "killed-meanwhile"])
def test_a_disk_that_fills_up_stops_the_spending_until_there_is_room(
    tmp_path: Path, killed: bool
) -> None:
    """While the disk is full, no new call is made;
    with room again, all goes on, killed or not.
    """
    more = '[paths]\noutbox = "small/outbox"\nstate = "small/state"\n'
    with (
        arena(tmp_path, "--latency", "0.5", more=more) as (place, model),
        _small_disk(place) as small,
    ):
        try:
            _under_way(place, model, 20)
            folder = small / "outbox/c"
            ballast = _filled_for_good(small, place, model)
            before = len(model.log())
            if killed:
                assert place.daemon is not None
                place.daemon.kill()
                place.daemon.wait()
            time.sleep(1.2)
            assert len(model.log()) == before, "calls are made that cannot be recorded"
            assert before < _COUNT * CALLS
            lines = place.log.read_text().count("\n")
            ballast.unlink()
            if killed:
                place.start()
            _finish(place, model, folder)
            assert lines < 2000, "it logs the same again and again"
        finally:
            place.clear()


#: What lies on the disk when it fills up: in a fetch, as clones and copies are made, at work, as
#: patches are made and as results are written; and the bytes that are left.
_MOMENTS = (
    ("mirrors/*/lock", 0),
    ("mirrors/*/kept/git*/objects/pack/*", 1 << 18),
    ("mirrors/*/kept/tree/f0", 1 << 19),
    ("outbox/c/*/.git", 0),
    ("outbox/*/*/f0", 1 << 18),
    ("outbox/*/*/notes.txt", 0),
    ("state/tmp/*.check", 0),
    ("outbox/*/*.patch", 1 << 20),
    ("outbox/*/001.json", 1 << 16),
    ("outbox/*/*1.json", 3 << 20),
    ("outbox/*/*2.json", 0),
    ("outbox/*/*3.json", 1 << 13),
)


def _leave(small: Path, left: int) -> None:
    """Fill a disk up to so many bytes, and keep it so for two seconds."""
    for _ in range(40):
        with contextlib.suppress(OSError), (small / "ballast").open("ab", buffering=0) as file:
            while (room := os.statvfs(small)).f_bfree * room.f_frsize > left:
                file.write(bytes(1 << 14))
        time.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize(
    ("count", "moments"),
    [(3, _MOMENTS[1:8:3]), pytest.param(30, _MOMENTS, marks=pytest.mark.long)],
    ids=["three-moments", "twelve"],
)
def test_a_disk_that_fills_up_is_no_fault_of_clones_copies_and_patches(
    tmp_path: Path, count: int, moments: tuple[tuple[str, int], ...]
) -> None:
    """Tasks that meet it go back and wait, and each ends completed,
    with a patch that is all that lies in its directory.
    """
    paths = {"outbox": "small/outbox", "state": "small/state"}
    more = "[paths]\n" + "".join(f'{name} = "{path}"\n' for name, path in paths.items())
    more += '[workspace]\nroot = "."\nmirrors = "small/mirrors"\n'
    with (
        arena(tmp_path, "--latency", "0.1", more=more) as (place, _),
        _small_disk(place) as small,
    ):
        source = repository(
            place.folder / "r", {f"f{n}": os.urandom(1 << 15).hex() for n in range(4)}
        )
        place.start()
        asks = [{"first_prompt": f"task {n}", "model": MODELS[1]} for n in range(count)]
        place.drop("c", [{**task, "repo": str(source)} for task in asks])
        place.drop("d", [{**task, "dir": str(source), "workspace": "copy"} for task in asks])
        ends = [small / f"outbox/{name}/summary.json" for name in "cd"]
        struck = []
        for pattern, left in moments:
            while not (found := next(small.glob(pattern), None)) and not all(
                map(Path.exists, ends)
            ):
                time.sleep(0.001)
            if found:
                struck.append(pattern)
                _leave(small, left)
            (small / "ballast").unlink(missing_ok=True)
        until(lambda: all(map(Path.exists, ends)), 60, place.tail)
        place.stop()
        log = place.log.read_text()
        troubles = {
            word: log.count(f"{word}_trouble")
            for word in ("mirror", "directory", "outbox", "store")
        }
        print(f"\nfilled at {len(struck)} of {len(moments)} moments; in the log: {troubles}")
        for folder in (end.parent for end in ends):
            for number in range(1, count + 1):
                result = json.loads((folder / f"{number:03}.json").read_text())
                assert (result["status"], result["patch"]["problem"]) == ("completed", None)
                assert result["patch"]["lacks"] is None
                _is_all(folder / f"{number:03}", source, tmp_path / "applied")
        assert len(struck) > len(moments) // 2


def _is_all(made: Path, source: Path, draft: Path) -> None:
    """See that a task's patch makes of its repository what lies in its directory."""
    shutil.copytree(source, draft)
    patch = made.with_suffix(".patch")
    if patch.exists():
        git(draft, "apply", str(patch))
    done = subprocess.run(
        ["diff", "-r", "--exclude=.git", draft, made], capture_output=True, check=False
    )
    shutil.rmtree(draft)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root counts the descriptors of a sealed process"
)
def test_a_daemon_without_descriptors_goes_on_when_it_has_some(tmp_path: Path) -> None:
    """EMFILE in daemon, fork server and workers for two seconds fails no task,
    and ends no process for good.
    """
    with arena(tmp_path, "--latency", "0.05") as (place, model):
        folder = _under_way(place, model, 10)
        place.limit(resource.RLIMIT_NOFILE, 0)
        time.sleep(2.0)
        place.limit(resource.RLIMIT_NOFILE, None)
        _finish(place, model, folder)


def test_processes_and_threads_that_cannot_be_made_fail_no_task(tmp_path: Path) -> None:
    """EAGAIN for every third fork, spawn or thread, in daemon, fork server, workers and starters,
    once all of them are up; each command has a sandbox of its own, so that many are forked.
    """
    apart = "[sandbox]\nkeep_processes = false\n"
    calls = "clone,clone3,fork,vfork"
    inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:error=EAGAIN:when=36+3")
    trace = tmp_path / "trace"
    prefix = ("strace", "-D", "-f", "-qq", "-o", str(trace), "--seccomp-bpf", *inject)
    with arena(tmp_path, "--latency", "0.05", processes=2, more=apart, prefix=prefix) as (
        place,
        model,
    ):
        folder = _under_way(place, model, 10)
        _finish(place, model, folder)
    assert trace.read_text().count("INJECTED") > 5
