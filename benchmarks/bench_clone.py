"""What a task's clone costs, of a repository of 2,000 files,
beside ``git clone --shared`` by hand; and its patch.

Run it as ``python benchmarks/bench_clone.py``. Both in turns, the median of the ratios counts. Exit
code 1 where a bound does not hold, or an object was copied.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from batchd.records import Base, Origin, SandboxPolicy
from batchd.sandbox import Sandbox
from batchd.workspace import clones, fetching, patches
from batchd.workspace.fetching import FetchJob

BOUND = 1.3
FILES, ROUNDS = 2000, 15
_POLICY = SandboxPolicy()


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder."""
    own = {"GIT_CONFIG_GLOBAL": str(_settings(folder.parent))}
    subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **own}, check=True)


def _settings(folder: Path) -> Path:
    """Return a configuration by which git takes repositories of every owner,
    as a task's git does.
    """
    path = folder / "settings"
    path.write_text("[safe]\n\tdirectory = *\n[user]\n\tname = a\n\temail = a@b\n")
    return path


def repository(folder: Path) -> None:
    """Make a repository of files of some 2 KB in 40 folders."""
    for number in range(FILES):
        path = folder / f"d{number % 40}/f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number} {line}\n" for line in range(200)))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    git(folder, "repack", "-a", "-d", "-q")  # as a mirror is
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", str(folder)], check=True)


def by_hand_s(source: Path, target: Path) -> float:
    """Return the time of a shared clone, made by git alone."""
    began = time.perf_counter()
    git(target.parent, "clone", "-q", "--shared", str(source), str(target))
    return time.perf_counter() - began


async def ours_s(sandbox: Sandbox, base: Base, target: Path) -> tuple[float, float]:
    """Return the times of a task's clone, from the opening of its directory,
    and of its patch of one line.
    """
    began = time.perf_counter()
    async with await sandbox.open(
        str(target), fresh=True, network=False, env={}, base=base.mirror
    ) as place:
        await clones.make(place, base, 60.0)
        cloned = time.perf_counter() - began
        await place.run(["sh", "-c", "echo x >> d0/f0.txt"], timeout_s=10.0)
        began = time.perf_counter()
        patch = await patches.changed(place, base, 10 << 20)
        assert [change.path for change in patch.changes] == ["d0/f0.txt"], patch.problem
        return cloned, time.perf_counter() - began


def objects(target: Path) -> int:
    """Return how many objects a clone has of its own."""
    inside = target / ".git/objects"
    return sum(path.is_file() for path in inside.rglob("*") if path.parent.name != "info")


async def main() -> int:
    """Take turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "all")
        os.chmod(name, 0o755)
        source, kept = folder / "source", folder / "mirror/kept"
        repository(source)
        os.mkdir(kept.parent)
        origin = Origin(kind="clone", source=str(source))
        job = FetchJob(
            origin=origin,
            kept=str(kept),
            fetch=True,
            policy=_POLICY,
            timeout_s=60.0,
            max_bytes=1 << 30,
        )
        began = time.perf_counter()
        commit = await fetching.fetched(job)
        mirrored = time.perf_counter() - began
        base = Base(origin=origin, mirror=str(kept), commit=commit, branch="batchd/b/001")
        sandbox, pairs, patches = Sandbox(_POLICY), [], []
        for turn in range(ROUNDS + 1):
            hand = by_hand_s(source, folder / f"hand{turn}")
            ours, patch = await ours_s(sandbox, base, folder / f"ours{turn}")
            assert not objects(folder / f"ours{turn}"), "an object was copied"
            if turn:  # the first one warms up
                pairs.append((hand, ours))
                patches.append(patch)
    ratio = statistics.median(ours / hand for hand, ours in pairs)
    print(f"git clone --shared by hand  {statistics.median(p[0] for p in pairs) * 1e3:7.1f} ms")
    print(f"a task's clone              {statistics.median(p[1] for p in pairs) * 1e3:7.1f} ms")
    print(
        f"ratio                       {ratio:7.2f}    (at most {BOUND}; median of {ROUNDS} pairs)"
    )
    print(f"its patch of one line       {statistics.median(patches) * 1e3:7.1f} ms")
    print(f"the mirror, once a batch    {mirrored * 1e3:7.1f} ms, without the child's start")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
