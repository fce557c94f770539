"""Thousands of small tasks through one daemon:
memory, descriptors, threads and files must stay flat.

    python tests/chaos/soak.py --minutes 5
    python tests/chaos/soak.py --minutes 60 --storms

With ``--storms`` the server refuses most calls (429) in every third minute: what grows over hours
of them, as the processor time of some clients does (openai-python#3777), grows here as well. Prints
a table over time and a verdict for each measure: the median of the second fifth
of the run against that of the last one. Exits with 1 where something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from arena import MODELS, Arena, Model, Process, arena

from batchd import control

_EVERY_S = 2.0
#: A zombie that is seen for so long is not waited for (seconds).
_UNREAPED_S = 1.5
#: Finished batches are pruned, folders and all, as an operator's timer would.
_PRUNE_S = 10.0
_BATCH = 250
_OPEN = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
#: Processor time is that of so many seconds: batches end by the hundred.
_WINDOW_S = 60.0
#: A storm comes so often and lasts so long; then so many calls a second are answered (seconds).
_STORM_EVERY_S, _STORM_S, _STORM_RPS = 180.0, 60.0, 40.0
_MB = 1 << 20

#: No worker is replaced: what one gathers is to show.
_POOL = "max_tasks_per_process = 0\nmax_rss_mb = 0\n"
_REST = """\
[store]
retention_days = 0
[log]
level = "warning"
"""


@dataclass(frozen=True)
class Measure:
    """Something that must not grow."""

    name: str
    #: What the last fifth may have more than the second, as a part of it and beside.
    part: float
    beside: float
    #: Whether it may grow by ``beside`` for each task: what stays known of it.
    each_task: bool = False


MEASURES = (
    Measure("CPU ms a task", 0.15, 0.5),
    Measure("daemon RSS MB", 0.03, 2),
    Measure("daemon PSS MB", 0.03, 2),
    Measure("worker RSS MB", 0.03, 2),
    Measure("worker PSS MB", 0.03, 2),
    Measure("fork server RSS MB", 0.03, 1),
    Measure("daemon fds", 0, 3),
    Measure("worker fds", 0, 10),
    Measure("threads", 0, 3),
    Measure("processes", 0, 10),
    Measure("WAL MB", 0.5, 4),
    # Its status, tokens and money: an entry of a table and of its indexes.
    Measure("database MB", 0, 600 / _MB, each_task=True),
    Measure("state files", 0, 2),
)


def _sizes(pid: int) -> tuple[float, float]:
    """Return resident and proportional memory in MB."""
    rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / _MB
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return rss, int(line.split()[1]) / 1024
    return rss, 0.0


def _fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _sample(place: Arena, ours: list[Process]) -> dict[str, float]:
    """Measure everything once. Raises ``OSError`` where a process ended meanwhile."""
    state = place.folder / ".batchd"
    (daemon,) = (p.pid for p in ours if p.role == "daemon")
    workers = [p.pid for p in ours if p.role == "worker"]
    servers = [p.pid for p in ours if p.role == "forkserver"]
    memory = [_sizes(pid) for pid in workers]
    rss, pss = _sizes(daemon)
    wal = state / "batchd.db-wal"
    return {
        "daemon RSS MB": rss,
        "daemon PSS MB": pss,
        "worker RSS MB": max(each[0] for each in memory),
        "worker PSS MB": max(each[1] for each in memory),
        "fork server RSS MB": max(_sizes(pid)[0] for pid in servers),
        "daemon fds": _fds(daemon),
        "worker fds": max(map(_fds, workers)),
        "threads": sum(map(_threads, (daemon, *workers))),
        "processes": len(ours),
        "WAL MB": wal.stat().st_size / _MB if wal.exists() else 0.0,
        "database MB": (state / "batchd.db").stat().st_size / _MB,
        "state files": len(list(state.iterdir())),
    }


def _zombies(daemon: int) -> set[tuple[int, str]]:
    """Return the dead children of this daemon's processes that were not waited for."""
    parents: dict[int, tuple[int, str, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1]), fields[0], fields[19]
    tree = [daemon]
    for pid in tree:
        tree += [child for child, (parent, _, _) in parents.items() if parent == pid]
    return {(pid, parents[pid][2]) for pid in tree if pid in parents and parents[pid][1] == "Z"}


class Meter:
    """Takes the processor time of a task, over the last minute."""

    def __init__(self) -> None:
        #: When, how many tasks were done by then, and what that took of processor time (seconds).
        self._marks: deque[tuple[float, float, float]] = deque()

    def mark(self, now: float, tasks: float, ours: Sequence[Process]) -> float:
        """Return the milliseconds a task; of the first minute, what there was so far."""
        self._marks.append((now, tasks, sum(_cpu_s(each.pid) for each in ours)))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW_S:
            self._marks.popleft()
        (_, tasks_before, cpu_before), (_, tasks_now, cpu_now) = self._marks[0], self._marks[-1]
        done = tasks_now - tasks_before
        return (cpu_now - cpu_before) / done * 1000 if done else 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(slots=True)
class Storms:
    """Has the server refuse what is above a rate, for a minute of every three."""

    server: Model
    blowing: bool = False

    def turn(self, now: float) -> None:
        """Begin one, or end it, where it is time."""
        wanted = now % _STORM_EVERY_S > _STORM_EVERY_S - _STORM_S
        if wanted != self.blowing:
            self.blowing = wanted
            self.server.control(rps=_STORM_RPS if wanted else 0.0, burst=_STORM_RPS)


class Feeder:
    """Keeps batches coming, and has those that ended pruned."""

    def __init__(self, place: Arena) -> None:
        self._place = place
        self._made = 0
        self._open: list[Path] = []
        self._pruned = time.monotonic()
        #: Tasks that have ended, all as completed.
        self.done = 0

    def turn(self) -> None:
        """Look at what has ended, drop what is missing, prune now and then."""
        for folder in [f for f in self._open if (f / "summary.json").exists()]:
            self._open.remove(folder)
            summary = (folder / "summary.json").read_text()
            if f'"completed": {_BATCH}' not in summary:
                raise SystemExit(f"{folder.name} did not complete:\n{summary[:1000]}")
            self.done += _BATCH
        while len(self._open) < _OPEN:
            self._made += 1
            tasks = [
                {"first_prompt": f"{self._made}: task {i}", "model": MODELS[i % 10 == 0]}
                for i in range(_BATCH)
            ]
            self._open.append(self._place.drop(f"s{self._made}", tasks))
        if time.monotonic() - self._pruned > _PRUNE_S:
            self._pruned = time.monotonic()
            state = self._place.folder / ".batchd"
            answer = control.request(state, "prune", older_than_days=0, outbox=True)
            if answer["problems"]:
                raise SystemExit(f"prune: {answer['problems']}")


def _samples(
    place: Arena, feeder: Feeder, storms: Storms | None, seconds: float
) -> Iterator[dict[str, float]]:
    """Yield a measurement every now and then, each with its time and the tasks done by then."""
    begun, meter = time.monotonic(), Meter()
    #: When each zombie was first seen: on a busy machine two looks may follow at once.
    dead: dict[tuple[int, str], float] = {}
    while (now := time.monotonic() - begun) < seconds:
        feeder.turn()
        if storms is not None:
            storms.turn(now)
        assert place.daemon is not None
        if place.daemon.poll() is not None:
            raise SystemExit(f"the daemon ended:\n{place.tail()}")
        looked = time.monotonic()
        dead = {each: dead.get(each, looked) for each in _zombies(place.daemon.pid)}
        if lasting := [each for each, seen in dead.items() if looked - seen >= _UNREAPED_S]:
            raise SystemExit(f"zombies that are not waited for: {lasting}")
        with contextlib.suppress(OSError, ValueError):
            ours = place.processes()
            cpu_ms = meter.mark(now, feeder.done, ours)
            yield {
                "s": now,
                "tasks": feeder.done,
                "CPU ms a task": cpu_ms,
                **_sample(place, ours),
            }
        time.sleep(max(0.0, _EVERY_S - (time.monotonic() - begun - now)))


def _row(values: Mapping[str, float]) -> str:
    return " ".join(f"{values[name]:>9.1f}" for name in ("s", "tasks", *(m.name for m in MEASURES)))


def _grew(measure: Measure, samples: list[dict[str, float]]) -> bool:
    """Print a measure's verdict, and return whether it grew."""
    fifth = len(samples) // 5
    parts = samples[fifth : 2 * fifth], samples[-fifth:]
    early, late = (statistics.median(s[measure.name] for s in part) for part in parts)
    tasks = [statistics.median(s["tasks"] for s in part) for part in parts]
    allowed = early * measure.part + measure.beside * (
        tasks[1] - tasks[0] if measure.each_task else 1
    )
    grew = late - early > allowed
    each = (late - early) * _MB / max(1.0, tasks[1] - tasks[0])
    rate = f"({each:.0f} bytes a task)" if measure.each_task else ""
    print(
        f"{measure.name:<20} {early:>9.2f} -> {late:>9.2f}  may grow by {allowed:>7.2f}"
        f"  {'GREW' if grew else 'flat'} {rate}"
    )
    return grew


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--storms", action="store_true", help="429s in every third minute")
    args = parser.parse_args()
    seconds = args.minutes * 60
    with (
        tempfile.TemporaryDirectory(prefix="batchd-soak-") as folder,
        arena(Path(folder), "--latency", "0.02", processes=2, agents=8) as (place, model),
    ):
        config = place.folder / "config.toml"
        text = config.read_text().replace("drain_s = 5\n", f"drain_s = 5\n{_POOL}")
        config.write_text(text + _REST)
        place.start()
        samples = _watch(place, Storms(model) if args.storms else None, seconds)
        place.stop()
    print(f"\n{samples[-1]['tasks']:.0f} tasks, {samples[-1]['tasks'] / seconds:.1f} a second")
    return min(1, sum(_grew(measure, samples) for measure in MEASURES))


def _watch(place: Arena, storms: Storms | None, seconds: float) -> list[dict[str, float]]:
    """Feed the daemon, and print what is measured meanwhile."""
    state = place.folder / ".batchd"
    while not (state / "control.sock").exists():
        time.sleep(0.05)
    samples: list[dict[str, float]] = []
    print(" ".join(f"{name[:9]:>9}" for name in ("s", "tasks", *(m.name for m in MEASURES))))
    for sample in _samples(place, Feeder(place), storms, seconds):
        if len(samples) % 10 == 0:
            print(_row(sample), flush=True)
        samples.append(sample)
    return samples


if __name__ == "__main__":
    sys.exit(main())
