"""What a worker on another machine keeps there:
packs, for all workers of its user, and the directories of its tasks.

CACHE/packs/DIGEST          packs
CACHE/work/NAME/            one worker's: locked as long as it lives,
                            so that others see what a killed one has left
CACHE/work/NAME/BATCH.TASK.ATTEMPT/   ``task``, its directory, and ``tmp``
CACHE/work/NAME/base.DIGEST/          what clones and copies begin as

Of packs and bases those that were not used for longest go first;
what a task uses right now neither goes nor counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from batchd import trees
from batchd.errors import NotPossibleError, SandboxUnavailableError
from batchd.records import Pack, Ref, SandboxPolicy
from batchd.records.policy import OwnPath
from batchd.sandbox import seen
from batchd.workspace import packs
from batchd.workspace.packs import Shelf

#: So many bytes of packs stay, where nothing else is asked for.
MAX_PACK_BYTES = 10 << 30
_LOCK = "lock"
#: A folder without a lock that nothing was done to for so long is one
#: that a process has left, in seconds.
_LEFT_S = 3600.0


def default() -> Path:
    """Return where it lies where nothing else is asked for."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    return Path(above if above.startswith("/") else Path.home() / ".cache", "batchd")


@dataclass(slots=True)
class _Base:
    """What clones and copies begin as, whole."""

    #: In bytes, as packed it would be.
    size: int
    #: How many tasks use it.
    users: int
    #: When the last one has left it, in seconds since the epoch.
    used: float = 0.0


class Cache:
    """One worker's view of it."""

    def __init__(self, folder: Path, most: int = MAX_PACK_BYTES) -> None:
        """Make what is missing, and remove what dead workers have left.

        Raises ``NotPossibleError``.
        """
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
        #: By what is made; each lasts as long as it is used.
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: By digest: those that are whole. Threads take them away.
        self._bases: dict[str, _Base] = {}
        self._guard = threading.Lock()

    def making(self, what: str) -> asyncio.Lock:
        """Return the lock of something that one at a time makes."""
        return self._making.setdefault(what, asyncio.Lock())

    def check(self, policy: SandboxPolicy) -> None:
        """Raise ``SandboxUnavailableError`` where commands would see something
        of what other tasks have here.
        """
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
                # It is being made at this moment, or removed; else who did so was killed.
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _LEFT_S:
                        trees.remove(left)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                trees.remove(left, last=_LOCK)
            except OSError:
                pass  # it is another's, who lives
            finally:
                os.close(lock)

    def folder(self, ref: Ref, attempt: int) -> Path:
        """Return where an attempt has its directory and its /tmp."""
        return self._own / f"{ref.batch}.{ref.task}.{attempt}"

    def base(self, pack: Pack) -> Path:
        """Return where it lies what clones and copies begin as."""
        return self._own / f"base.{pack.digest}"

    def use_base(self, pack: Pack) -> bool:
        """Count one more task that uses a base, if it is here;
        it lets go of it by ``leave_base``.
        """
        with self._guard:
            if (base := self._bases.get(pack.digest)) is not None:
                base.users += 1
            return base is not None

    def made_base(self, pack: Pack) -> None:
        """Take that a base is whole, and that the task which made it uses it."""
        with self._guard:
            self._bases[pack.digest] = _Base(pack.plain, users=1)

    def leave_base(self, pack: Pack) -> None:
        """Count one task less that uses a base."""
        with self._guard:
            base = self._bases[pack.digest]
            base.users -= 1
            base.used = time.time()

    def trim(self) -> None:
        """Remove packs and bases that are too many. Blocks."""
        with contextlib.suppress(OSError):
            with self._guard:
                free = [(digest, each) for digest, each in self._bases.items() if not each.users]
            idle = [
                *(
                    (each.used, each.size, partial(self.shelf.discard, each))
                    for each in self.shelf.idle()
                ),
                *((each.used, each.size, partial(self._discard, digest)) for digest, each in free),
            ]
            size = sum(each[1] for each in idle)
            for _, its, remove in sorted(idle, key=lambda each: each[0]):
                if size <= self._most:
                    break
                remove()
                size -= its

    def _discard(self, digest: str) -> None:
        """Remove a base, unless a task uses it by now. Raises ``OSError``."""
        gone = self._own / f"gone.{secrets.token_hex(8)}"
        with self._guard:
            base = self._bases.get(digest)
            if base is None or base.users:
                return
            (self._own / f"base.{digest}").rename(gone)  # while no task may begin to use it
            del self._bases[digest]
        trees.remove(gone)

    def close(self) -> None:
        """Remove what is this worker's own. Blocks."""
        with contextlib.suppress(OSError):
            trees.remove(self._own, last=_LOCK)
        os.close(self._lock)
