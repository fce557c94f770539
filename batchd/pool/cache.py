"""What a worker on another machine keeps there: packs, for all workers of its user, and the directories of its tasks.

CACHE/packs/DIGEST          packs, those that were not used for longest going first
CACHE/work/NAME/            one worker's: locked as long as it lives, so that others see what a killed one has left
CACHE/work/NAME/BATCH.TASK.ATTEMPT/   ``task``, its directory, and ``tmp``
CACHE/work/NAME/base.DIGEST/          what clones and copies begin as
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections import defaultdict
from pathlib import Path

from batchd import trees
from batchd.errors import NotPossibleError, SandboxUnavailableError
from batchd.records import Pack, Ref, SandboxPolicy
from batchd.records.own_paths import OwnPath
from batchd.sandbox import seen
from batchd.workspace import packs
from batchd.workspace.packs import Shelf

#: So many bytes of packs stay, where nothing else is asked for.
MAX_PACK_BYTES = 10 << 30
_LOCK = "lock"


def default() -> Path:
    """Return where it lies where nothing else is asked for."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    return Path(above if above.startswith("/") else Path.home() / ".cache", "batchd")


class Cache:
    """One worker's view of it."""

    def __init__(self, folder: Path, most: int = MAX_PACK_BYTES) -> None:
        """Make what is missing, and remove what dead workers have left. Raises ``NotPossibleError``."""
        packs.library()
        self._most = most
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = folder.resolve()
            self.shelf = Shelf(whole / "packs")
            self.shelf.prepare()
            self._work = whole / "work"
            self._work.mkdir(mode=0o700, exist_ok=True)
            self._sweep()
            self._own = self._work / f"{os.getpid()}-{secrets.token_hex(4)}"
            self._own.mkdir(mode=0o700)
            self._lock = os.open(self._own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, RuntimeError) as error:
            fix = "name another place with --cache"
            raise NotPossibleError(
                f"{folder} cannot be this worker's cache: {error}: {fix}"
            ) from None
        #: One at a time makes each of what tasks begin as.
        self.making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def check(self, policy: SandboxPolicy) -> None:
        """Raise ``SandboxUnavailableError`` where commands would see something of what other tasks have here."""
        try:
            problem = next(seen(policy, (OwnPath("--cache", str(self._work.parent)),)), None)
        except ValueError as error:
            raise SandboxUnavailableError(str(error)) from None
        if problem is not None:
            raise SandboxUnavailableError(str(problem))

    def _sweep(self) -> None:
        for left in self._work.iterdir():
            try:
                lock = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # it is being made at this moment, or removed
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                trees.remove(left)
            except OSError:
                pass  # it is another's, who lives
            finally:
                os.close(lock)

    def folder(self, ref: Ref, attempt: int) -> Path:
        """Return where an attempt has its directory and its /tmp."""
        return self._own / f"{ref.batch}.{ref.task}.{attempt}"

    def base(self, pack: Pack) -> Path:
        """Return where it lies what clones and copies begin as, and what says that it is whole beside it."""
        return self._own / f"base.{pack.digest}"

    def trim(self) -> None:
        """Remove packs that are too many. Blocks."""
        with contextlib.suppress(OSError):
            self.shelf.trim(self._most)

    def close(self) -> None:
        """Remove what is this worker's own. Blocks."""
        with contextlib.suppress(OSError):
            trees.remove(self._own)
        os.close(self._lock)
