"""The presence of the store's files where they were opened:
deleting or moving them does not stop a writer.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from batchd import trees
from batchd.errors import DamagedStoreError
from batchd.store import copies

#: How the kernel marks the path of an open file that was deleted.
_DELETED = " (deleted)"


class Presence:
    """The files of an open store, known by their inodes,
    which no other file can get while they are open.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        # O_PATH: closing any other descriptor would give up SQLite's locks on the file.
        self._file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._log_was = trees.identity(self._log)
        self._loss: DamagedStoreError | None = None

    def holds(self) -> bool:
        """Return whether all is where it was."""
        found = os.fstat(self._file)
        return (
            self._loss is None
            and trees.identity(self._path) == (found.st_dev, found.st_ino)
            and (self._log_was is None or trees.identity(self._log) == self._log_was)
        )

    def check(self) -> None:
        """Raise ``DamagedStoreError`` where it is not; what was deleted is saved first.

        Only who may use the connection, between two transactions, may call it.
        """
        if not self.holds():
            self._loss = self._loss or DamagedStoreError(self._described())
            raise self._loss

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _described(self) -> str:
        """Return what became of the files, and how to go on."""
        now = os.readlink(f"/proc/self/fd/{self._file}")
        found = os.fstat(self._file)
        if trees.identity(self._path) == (found.st_dev, found.st_ino):
            what = f"{self._log} was deleted, moved or exchanged"
            how = f"what it held is moved into {self._path.name}: start batchd again"
        elif not now.endswith(_DELETED):
            what = f"{self._path} was moved away"
            how = f"it is {now} now: move it back, its -wal too if there is one, and start batchd again"
        else:
            what = f"{self._path} was deleted"
            how = self._save()
        return f"{what} while batchd worked on it; {how}"

    def _save(self) -> str:
        """Save what was deleted, which can still be read; return how to go on."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        saved = self._path.with_name(f"{self._path.name}.saved-{stamp}")
        try:
            saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            copies.copy(self._db, saved)
            if os.path.lexists(self._path):
                if trees.identity(self._log) == self._log_was:
                    self._log.unlink()  # the next start would read it into that other file
                return f"another file is in its place; `batchd restore {saved}` puts what it held there"
            saved.replace(copies.staged(self._path))
            trees.sync(saved.parent)
        except (sqlite3.Error, OSError) as error:
            return f"what it held could not be saved ({error}): put a backup in its place with `batchd restore BACKUP`"
        return "what it held is saved, and put back at the next start: start batchd again"
