"""Which directories a task may work in: below the workspace, and clear of the spool itself."""

from __future__ import annotations

import os
import stat
import sys
from functools import cached_property
from pathlib import Path

from batchd.config import Config, trust
from batchd.log import escape

#: The kernel takes none that is longer (PATH_MAX, in bytes).
_PATH_LENGTH = 4095


class Directories:
    """Answers for one task file; remembers what it has resolved."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._known: dict[str, str | None] = {}

    @cached_property
    def _open(self) -> tuple[str, ...]:
        workspace = self._config.workspace
        return tuple(os.path.realpath(p) for p in (workspace.root, *workspace.allow))

    @cached_property
    def _closed(self) -> dict[str, str]:
        """What no task may touch, by real path."""
        paths = self._config.paths
        spool = {"inbox": paths.inbox, "outbox": paths.outbox, "state": paths.state}
        closed = {os.path.realpath(p): f"the {name} folder" for name, p in spool.items()}
        closed |= {os.path.realpath(p): "a key file" for p in self._config.key_files()}
        # Its code runs outside of every sandbox.
        for path in (Path(__file__).parents[1], sys.prefix):
            closed[os.path.realpath(path)] = "the program itself"
        if self._config.log.file:
            closed[os.path.realpath(self._config.log.file)] = "the log"
        if self._config.metrics.textfile:
            closed[os.path.realpath(self._config.metrics.textfile)] = "the file of metrics"
        if self._config.file:
            closed[os.path.realpath(self._config.file)] = "the configuration"
        # What a task wrote there would count for whoever runs batchd next.
        for path in trust.guarded(self._config.environ):
            closed.setdefault(path, "where batchd looks for its configuration")
        return closed

    def real(self, directory: str) -> str:
        """Return the real path that ``dir`` means."""
        return os.path.realpath(Path(self._config.workspace.root, directory))

    def problem(self, directory: str, *, must_exist: bool) -> str:
        """Return why a task may not work in ``dir``; empty: it may."""
        if len(directory) > _PATH_LENGTH:
            # To resolve it would take a system call for each of its steps, with all that stands before.
            return f"a path has at most {_PATH_LENGTH:,} characters"
        # Journals and results are UTF-8 and logs have lines; a link may lead to what is neither.
        if escape(directory) != directory:
            return f"a path cannot hold control characters or half characters: {escape(directory)}"
        real = self.real(directory)
        if escape(real) != real:
            return f"its real path is not UTF-8, or holds control characters: {escape(real)}"
        if real not in self._known:
            self._known[real] = self._refusal(real)
        if refusal := self._known[real]:
            return refusal
        try:
            status = Path(real).stat()
        except FileNotFoundError:
            return f"{real} does not exist" if must_exist else ""
        except OSError as error:
            return f"{real} cannot be used: {error.strerror}"
        return "" if stat.S_ISDIR(status.st_mode) else f"{real} is no directory"

    def _refusal(self, real: str) -> str | None:
        if not any(_within(real, top) for top in self._open):
            return f"{real} lies outside of [workspace] root and allow"
        for path, name in self._closed.items():
            if real == path:
                return f"{real} is {name}"
            if _within(real, path):
                return f"{real} lies in {name}"
            if _within(path, real):
                return f"{real} holds {name}"
        return None


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
