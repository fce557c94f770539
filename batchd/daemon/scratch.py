"""The tasks' own /tmp: where each lies, and that it, and a check's, goes with its task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from batchd import trees
from batchd.config import Config
from batchd.daemon import main_loop
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.listeners import Listener
from batchd.events import TaskFinished
from batchd.log import Action, get_logger
from batchd.records import Ref
from batchd.sandbox.folders import apart_tmp

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
        names = {_name(ref) for ref in unfinished}
        with contextlib.suppress(OSError):  # there is none yet
            self._take_away(
                [path for path in above(self._current.config).iterdir() if path.name not in names]
            )

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


def above(config: Config) -> Path:
    """Return the folder of them all, which machines share: it must be there before a task's is."""
    return Path(config.paths.state, _FOLDER)


def folder(config: Config, ref: Ref) -> Path:
    """Return where a task's /tmp lies."""
    return above(config) / _name(ref)


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
