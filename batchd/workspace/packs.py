"""The folder of packs: files of a directory, each of them named by the SHA-256 of what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchd import trees
from batchd.errors import NotPossibleError, WorkspaceError
from batchd.records import Pack
from batchd.workspace.packfile import Reading

_DIGEST = re.compile("[0-9a-f]{64}")
_DRAFT = ".draft-"
#: A draft that was not written to for so long is one that a process has left, in seconds.
_LEFT_S = 3600.0


def library() -> None:
    """Raise ``NotPossibleError``, with the fix, where what compresses packs is not installed."""
    try:
        import zstandard  # noqa: F401 (an extra's)
    except ImportError as error:
        raise NotPossibleError(
            f"directories cannot travel: {error}: pip install 'batchd[cluster]'"
        ) from error


def sound(pack: Pack) -> bool:
    """Whether a pack that somebody else names can be one."""
    return bool(_DIGEST.fullmatch(pack.digest)) and pack.size > 0 and pack.plain > 0


class Shelf:
    """A folder of packs, each under its name, for its owner alone. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder, and remove what processes that were killed have left.

        Raises ``OSError``.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in self._folder.glob(f"{_DRAFT}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _LEFT_S:
                    draft.unlink()

    def path(self, pack: Pack) -> Path:
        """Return where a pack lies, if it does."""
        return self._folder / pack.digest

    def draft(self) -> Path:
        """Return the path of a file that is yet to be written."""
        return self._folder / f"{_DRAFT}{secrets.token_hex(8)}"

    def has(self, pack: Pack) -> bool:
        """Whether a pack is there; then it counts as used just now."""
        try:
            os.utime(self.path(pack))
            return self.path(pack).stat().st_size == pack.size
        except OSError:
            return False

    def hold(self, pack: Pack) -> int:
        """Return a descriptor of a pack: until it is closed,
        no process of this user discards it; -1: it is not there.

        It counts as used just now. Raises ``OSError``.
        """
        try:
            held = os.open(self.path(pack), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            its = os.fstat(held)
            if its.st_nlink and its.st_size == pack.size:
                os.utime(held)
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)
        return -1

    def keep(self, draft: Path, pack: Pack) -> None:
        """Make a draft the pack, durably, once its contents are verified.

        Raises ``WorkspaceError``, ``OSError``.
        """
        with draft.open("rb+") as file:
            if file.seek(0, os.SEEK_END) != pack.size:
                raise WorkspaceError("it is another pack: its size is wrong")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != pack.digest:
                raise WorkspaceError("it is another pack: its hash differs from its name")
            os.fsync(file.fileno())
        draft.rename(self.path(pack))
        trees.sync(self._folder)

    @contextlib.contextmanager
    def reading(self, pack: Pack) -> Iterator[Reading]:
        """Give a pack's contents. Raises ``WorkspaceError``, ``OSError``."""
        with self.path(pack).open("rb") as file:
            yield Reading(file, pack)

    def _all(self) -> Iterable[Path]:
        return (path for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name))

    def sweep(self, needed: Collection[str], young_s: float = 0.0) -> int:
        """Remove all packs but those with these digests, and return how many bytes that frees.

        Raises ``OSError``.

        ``young_s``: what has its name for a shorter time stays.
        """
        freed, born = 0, time.time() - young_s
        for path in self._all():
            with contextlib.suppress(FileNotFoundError):
                if path.name not in needed and not (young_s and path.stat().st_ctime > born):
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def idle(self) -> list[IdlePack]:
        """Return the packs that no process holds. Raises ``OSError``."""
        found = []
        for path in self._all():
            with _alone(path) as there:
                if there is not None:
                    found.append(IdlePack(there.st_mtime, there.st_size, path))
        return found

    def discard(self, idle: IdlePack) -> None:
        """Remove a pack, unless some process holds it by now. Raises ``OSError``."""
        with _alone(idle.path) as there:
            if there is not None:
                idle.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class IdlePack:
    """A pack that no process holds."""

    #: When it was used last, in seconds since the epoch.
    used: float
    #: In bytes.
    size: int
    path: Path


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[os.stat_result | None]:
    """Lock a pack, and yield what it is; None: another process holds it, or it is gone."""
    try:
        # NFS locks for one alone what is open for writing.
        held = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield os.fstat(held)
    finally:
        os.close(held)
