"""The tasks' own /tmp: where each lies, and that it, and a check's, goes with its task; and what
0.2.0 has left of directories that were on other machines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from batchd import trees
from batchd.config import Config
from batchd.daemon import main_loop
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.listeners import Listener
from batchd.errors import NotPossibleError
from batchd.events import TaskFinished
from batchd.log import Action, get_logger
from batchd.records import Ref
from batchd.sandbox.folders import apart_tmp
from batchd.words import counted, listed

_FOLDER = "tmp"


@dataclass(slots=True, eq=False, repr=False)
class ScratchCleanup(Listener):
    """Removes what ended tasks leave in their /tmp."""

    _current: CurrentConfig
    _gone: list[Path] = field(default_factory=list)
    _at_work: bool = False

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Take it away soon."""
        own = folder(self._current.config, ref)
        self._take_away([own, Path(apart_tmp(str(own)))])

    def sweep(self, unfinished: Iterable[Ref]) -> None:
        """Take away what was left by tasks that have ended; before any work begins."""
        above = Path(self._current.config.paths.state, _FOLDER)
        names = {_name(ref) for ref in unfinished}
        _forget_lost(above.parent, names)
        with contextlib.suppress(OSError):  # there is none yet
            self._take_away([path for path in above.iterdir() if path.name not in names])

    def _take_away(self, paths: Iterable[Path]) -> None:
        self._gone += paths
        if self._gone and not self._at_work:
            self._at_work = True
            main_loop.spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._gone:
                paths, self._gone = self._gone, []
                for path, error in await asyncio.to_thread(_removed, paths):
                    get_logger().warning(
                        Action.SANDBOX_TROUBLE,
                        message=f"{path} cannot be removed: {error.strerror}; the next start tries it again",
                    )
        finally:
            self._at_work = False


def prepare(config: Config) -> None:
    """Make the folder of them all, which machines share."""
    Path(config.paths.state, _FOLDER).mkdir(mode=0o700, exist_ok=True)


def folder(config: Config, ref: Ref) -> Path:
    """Return where a task's /tmp lies."""
    return Path(config.paths.state, _FOLDER, _name(ref))


def _name(ref: Ref) -> str:
    # Neither holds a full stop.
    return f"{ref.batch}.{ref.task}"


def _removed(paths: Iterable[Path]) -> list[tuple[Path, OSError]]:
    """Remove them; return those that could not be."""
    failed = []
    for path in paths:
        try:
            trees.remove(path)
        except OSError as error:
            failed.append((path, error))
    return failed


#: Packs, and below them the list of each task, as BATCH.TASK; and these lists once the packs are
#: gone.
_PACKS, _TASKS, _DROPPED = "packs", "tasks", "dropped-packs"
_NAMED = 5


def insist_without_packs(state: Path, *, drop: bool) -> None:
    """Return where no task's changes lie in packs; ``drop``: they may go.

    Raises ``NotPossibleError``, and ``OSError``.
    """
    lists = state / _PACKS / _TASKS
    names = sorted(each.name for each in lists.iterdir()) if lists.is_dir() else []
    tasks = [name.replace(".", "/", 1) for name in names]
    if names and not drop:
        more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
        raise NotPossibleError(
            f"what {counted(len(tasks), 'task')} changed on other machines ({listed(tasks[:_NAMED])}{more}) lies "
            f"packed in {state / _PACKS}, and is not in their directories: run batchd 0.2 once, without [pool] "
            "listen, until `batchd status` shows no directory_trouble and these tasks have ended, or "
            "`batchd serve --drop-packs`: they go on in the directory as it is, and their models learn that files "
            "may be lost"
        )
    if names:
        (state / _DROPPED).mkdir(mode=0o700, exist_ok=True)
        for name in names:
            (lists / name).rename(state / _DROPPED / name)
        get_logger().warning(Action.DIRECTORY_TROUBLE, message="packs are dropped", tasks=tasks)
    trees.remove(state / _PACKS)


def lost(state: Path, ref: Ref) -> bool:
    """Whether what a task changed was dropped."""
    return (state / _DROPPED / f"{ref.batch}.{ref.task}").exists()


def _forget_lost(state: Path, unfinished: Collection[str]) -> None:
    """Forget the tasks that have ended; ``unfinished``: the others, as BATCH.TASK."""
    with contextlib.suppress(OSError):  # there are none, or some are left
        for each in (state / _DROPPED).iterdir():
            if each.name not in unfinished:
                each.unlink()
        (state / _DROPPED).rmdir()
