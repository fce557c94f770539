"""A batch's folder is taken away: all of what agents may have made of it, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchd.log import escape
from batchd.spool.outbox import SUMMARY

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A summary has a line a task.
_SUMMARY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of a published batch."""

    #: The outbox that it lies in.
    outbox: str
    #: The batch's, which is its own.
    name: str

    def size(self) -> int | None:
        """Return what it takes on disk, in bytes, as far as it can be read; None where it is not there."""
        path = f"{self.outbox}/{self.name}"
        if not os.path.lexists(path):
            return None
        total, waiting = 0, [path]
        while waiting:
            with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        return total

    def remove(self) -> str:
        """Take it away; return why it could not be, wholly; empty: it is gone.

        It must be a folder, with this batch's summary in it: one that somebody put in its place is left alone.
        Links in it are removed, not followed. What is mounted in it is left alone.
        """
        shown = escape(f"{self.outbox}/{self.name}")
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            return f"{shown} is no batch's folder"
        try:
            outbox = os.open(self.outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{shown}: {error.strerror}"
        try:
            top = os.open(self.name, _OPEN, dir_fd=outbox)
            try:
                if not _is_of(top, self.name):
                    return f"{shown} is left alone: it does not hold the summary of {self.name}"
                _Emptying(top).run()
            finally:
                os.close(top)
            os.rmdir(self.name, dir_fd=outbox)
        except FileNotFoundError:
            return ""
        except NotADirectoryError:
            return f"{shown} is left alone: it is a link or a file"
        except OSError as error:
            where = f" ({escape(os.fsdecode(error.filename))})" if error.filename else ""
            return f"{shown} could not be removed: {error.strerror}{where}"
        finally:
            with contextlib.suppress(OSError):
                os.fsync(outbox)
            os.close(outbox)
        return ""


def _is_of(top: int, name: str) -> bool:
    """Tell whether a folder holds the summary of the batch ``name``."""
    try:
        descriptor = os.open(SUMMARY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor has no path)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            found = json.loads(file.read(_SUMMARY_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("batch") == name


class _Emptying:
    """Removes what is in a folder, level by level, so that no depth, no mode and no name stops it.

    A folder's own folders are first moved up, under new names, to the top; then it is empty but for
    files. So nothing is ever deeper than one, and what is a mount, which cannot be moved, is never entered.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._mark = f".gone-{secrets.token_hex(8)}-"
        self._count = 0

    def run(self) -> None:
        """Leave nothing. Raises ``OSError`` for what cannot be removed."""
        waiting = list(self._unlink(self._top, keep=SUMMARY))
        moved = [self._move_up(self._top, name) for name in waiting]
        while moved:
            name = moved.pop()
            folder = self._open(self._top, name)
            try:
                moved += [self._move_up(folder, inner) for inner in self._unlink(folder)]
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=self._top)
        # Last of all: with it, an interrupted removal is known for what it is, and can go on.
        os.unlink(SUMMARY, dir_fd=self._top)

    def _unlink(self, folder: int, keep: str = "") -> Iterator[str]:
        """Remove all but folders, whose names are yielded."""
        for name in os.listdir(folder):
            if name == keep:
                continue
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                yield name
            else:
                os.unlink(name, dir_fd=folder)

    def _move_up(self, folder: int, name: str) -> str:
        new = f"{self._mark}{self._count}"
        self._count += 1
        self._let_in(folder, name)  # a folder that moves is written to: its `..` changes
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=self._top)
        return new

    def _open(self, parent: int, name: str) -> int:
        return os.open(name, _OPEN, dir_fd=parent)

    def _let_in(self, parent: int, name: str) -> None:
        """Have ourselves be allowed in a folder, without following what may stand in its place."""
        looked = os.open(name, _LOOK, dir_fd=parent)
        try:
            if stat.S_IMODE(os.fstat(looked).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
                # Another's folder: what follows fails, and says so, unless we are root.
                with contextlib.suppress(PermissionError):
                    Path(f"/proc/self/fd/{looked}").chmod(stat.S_IRWXU)
        finally:
            os.close(looked)
