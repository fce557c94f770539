"""What does not get on, in words: what keeps a batch, why a task waits, what is in trouble."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from batchd import words
from batchd.control import OpenTrouble
from batchd.log import escape
from batchd.records import Cause, Parking, Ref, Scope, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.version import __version__
from batchd.views import last, view
from batchd.words import listed, moment


def of_batch(
    parked: Iterable[Parking], batch: str, tasks: Sequence[TaskRow]
) -> tuple[Parking, ...]:
    """Return what keeps tasks of a batch from going on."""
    if not (parked := tuple(parked)):
        return ()
    left = (task for task in tasks if not task.status.final)
    keys = {(Scope.BATCH, batch), *(key for task in left for key in _keys(task))}
    return tuple(each for each in parked if (each.scope, each.name) in keys)


def _keys(task: TaskRow) -> tuple[tuple[Scope, str], ...]:
    """Return what of all that may be parked keeps a task."""
    return (
        (Scope.TASK, str(task.ref)),
        (Scope.BATCH, task.ref.batch),
        (Scope.PROVIDER, task.model.partition("/")[0]),
        (Scope.MODEL, task.model),
        (Scope.DAY, ""),
        (Scope.ALL, ""),
    )


#: What a running task's line says where no daemon can be working on it.
NO_DAEMON = "no daemon runs; it goes on when one starts"


def earlier_batches(batches: Iterable[BatchRow]) -> Mapping[str, Sequence[str]]:
    """Return by batch which of those that it comes after have not ended;
    ``batches``: all that have not.
    """
    rows = {row.batch.name: row.batch for row in batches if row.published_at is None}
    return {
        name: [each for each in batch.after_batches if each in rows] for name, batch in rows.items()
    }


class WaitReasons:
    """Says of each task what it waits for."""

    def __init__(
        self,
        parked: Iterable[Parking],
        begun: Iterable[TaskRow],
        left: Collection[Ref],
        *,
        earlier: Mapping[str, Sequence[str]] | None = None,
        daemon: bool,
    ) -> None:
        """``begun``: what has a directory to itself;
        ``left``: what has not ended, of all that tasks come after.

        ``earlier``: by batch, those that have not ended of all that it comes after.
        """
        self._left = left
        self._earlier = earlier or {}
        self._daemon = daemon
        self._parked: dict[tuple[Scope, str], list[Parking]] = {}
        for each in parked:
            self._parked.setdefault((each.scope, each.name), []).append(each)
        self._at: dict[str, TaskRow] = {}
        #: By each directory above: one that holds a directory below it.
        self._below: dict[str, TaskRow] = {}
        for task in begun:
            self._at[task.directory] = task
            self._below.update(dict.fromkeys(_above(task.directory), task))

    def why(self, task: TaskRow, *, brief: bool = False) -> str:
        """Return what keeps a task from going on;
        empty where it only waits for its turn, or works.

        ``brief``: what is said of providers, models and batches stands beside it, so that each is
        named with its cause alone.
        """
        if task.status.final:
            return view.why(task.status, task.reason, task.round, task.message)
        if task.status is TaskStatus.RUNNING:
            return last(task.step).caution if self._daemon else NO_DAEMON
        return "; ".join(self._causes(task, brief=brief)) or task.message

    def parkings(self, task: TaskRow) -> list[Parking]:
        """Return what is parked and keeps a task from going on;
        what only people can end comes first, the newest first.
        """
        found = [each for key in _keys(task) for each in self._parked.get(key, ())]
        return sorted(found, key=lambda p: (p.cause is not Cause.PAUSED, -p.since))

    def _causes(self, task: TaskRow, *, brief: bool) -> Iterator[str]:
        for each in self.parkings(task):
            said = words.why(each.cause, each.message)
            if each.scope is Scope.TASK:
                yield said
            else:
                where = words.named(each.scope, each.name)
                yield f"{where}: {each.cause if brief else said}"
        if names := [name for name in task.after if Ref(task.ref.batch, name) in self._left]:
            yield f"comes after {listed(names)}"
        if task.needs:
            yield f"needs {task.needs}"
        if task.machine:
            yield f"needs the machine {task.machine}"
        if not task.attempts and (others := self._earlier.get(task.ref.batch)):
            yield f"comes after the {'batch' if len(others) == 1 else 'batches'} {listed(others)}"
        if not task.attempts and (other := self._holder(task.directory)):
            name = other.ref.task if other.ref.batch == task.ref.batch else str(other.ref)
            same = other.directory == task.directory
            yield f"{name} works in {'its directory' if same else other.directory}"

    def _holder(self, path: str) -> TaskRow | None:
        """Return a task that has begun in a directory, above it or below it."""
        for each in (path, *_above(path)):
            if other := self._at.get(each):
                return other
        return self._below.get(path)


def _above(path: str) -> Iterator[str]:
    """Yield the directories above an absolute path, nearest first;
    it is quick for a hundred thousand tasks.
    """
    while path := path.rpartition("/")[0]:
        yield path


#: What the daemon meets.
_WHAT = {
    "outbox_trouble": "results cannot be written, so tasks that would leave some there do not start",
    "sandbox_trouble": "commands cannot be run, so no task starts",
    "directory_trouble": "a task's directory, or its patch, cannot be written here",
    "mirror_trouble": "no repository can be fetched, so tasks with one wait",
    "worker_trouble": "some tasks have no worker, so they do not start",
    "cluster_trouble": "no new worker starts on the Ray cluster, so tasks wait for the present ones",
    "node_trouble": "workers of machines do not come up, or lack a key",
    "inbox_trouble": "files cannot be dropped into the inbox, or cannot be taken up",
    "place_trouble": "files and tasks that name something there wait",
    "control_trouble": "the control socket was removed, and cannot be made again",
    "store_trouble": "the store cannot be written, or its disk is full: no call is made that it cannot record",
    "stalled": "something could go on and does not",
    "metrics_trouble": "no metrics, but tasks go on",
    "traces_trouble": "no traces, but tasks go on",
}


def what(trouble: OpenTrouble) -> str:
    """Return what fails, and what that means for tasks."""
    if trouble.what == "outbox_trouble" and (names := trouble.batches):
        return f"results of {', '.join(names)} cannot be written, so none of its tasks starts"
    return _WHAT.get(trouble.what, trouble.what)


def trouble_lines(trouble: OpenTrouble) -> Iterator[str]:
    """Yield two lines: what fails since when, and the fix."""
    yield escape(f"Trouble since {moment(trouble.since)}: {what(trouble)}. {trouble.message}")
    yield escape(f"  To go on: {trouble.mend}")


def differs(version: str) -> str:
    """Return what to do about a daemon of another version, in one line; empty: nothing.

    ``version``: what it says; empty: it is too old to say.
    """
    if version == __version__:
        return ""
    which = f"batchd {version}" if version else "an older batchd"
    if _numbers(version) > _numbers(__version__):
        return (
            f"The daemon is {which}, newer than this program ({__version__}): use the daemon's "
            "program, or start this one again."
        )
    return (
        f"The daemon is {which}, this program is {__version__}: restart the daemon (`systemctl restart batchd`,"
        " or stop it and `batchd serve`). Its tasks go on where they were."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
