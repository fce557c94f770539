"""The inbox: watch, settle, claim.

A file has settled that was moved in, whole at once; else when it says so itself, or held still;
never while it is written. A claim is a rename into a folder of ours (see ``claims``): only one
claimer gets the file, and nothing of it is lost. Events are hints that wake us; what counts is what
a look at the folder finds. The folder stays open: its name may come to lead elsewhere, and what is
looked at and claimed is always in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import os
import re
import signal
import stat
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from batchd import decoders, trees
from batchd.config import Config
from batchd.log import Action, get_logger
from batchd.spool import claims as claiming, files
from batchd.spool.claims import Claim, Claimer, Signature, ignorable, signature
from batchd.spool.folder_watch import FileSign, Hints

T = TypeVar("T")

#: A larger JSON file is not parsed when it is closed, but settles.
_PEEK_BYTES = 4 << 20
#: Files that are watched for stillness at a time; the others' turn comes.
_MAX_WATCHED = 10_000

#: Files claimed at a time: they share their syncs, and are all that is handed out ahead of need.
CHUNK = 256
#: What one scan brings: the oldest files. The next scan brings the rest.
_WINDOW = 32_768
#: A message is logged again after so long, where there are too many to remember (seconds).
_AGAIN_S = 3600.0
#: Messages that are remembered as logged.
_MAX_LOGGED = 1000
#: A file that is written in place again so soon after its claim is being edited there (seconds).
_EDITED_S = 120.0
#: Names that are remembered for that.
_MAX_NAMES = 1000
#: At the end a folder that hangs is left to the end of the process after so long (seconds).
_LEAVES_S = 2.0


def file_name(name: str) -> str:
    """Return the name under which a file of some name is dropped:
    in one folder, and not hidden; its ending stays.
    """
    clean = re.sub(r"[/\0]", "-", name).lstrip(".")
    ending = os.path.splitext(name.lstrip("."))[1] or Path(name).suffix
    return (
        clean
        if clean and clean.endswith(ending) and clean != ending.lstrip(".")
        else f"task{ending or '.json'}"
    )


def drop(inbox: Path, name: str, data: bytes) -> Path:
    """Put a task file into an inbox, whole at once; return its path.

    A name that is taken gets ``-2``, ``-3``. Raises ``OSError`` where it cannot be written.
    """
    clean = file_name(name)
    files.make_folder(inbox)
    number = 1
    while True:
        stem, ending = os.path.splitext(clean)
        path = inbox / (clean if number == 1 else f"{stem}-{number}{ending}")
        try:
            files.write_whole(path, data, replace=False)
        except FileExistsError:
            number += 1
        else:
            return path


@dataclass(frozen=True, slots=True)
class _Seen:
    signature: Signature
    since: float


class Settling:
    """The files that are not known to be whole, until they held still for long enough."""

    def __init__(self, settle_s: float, *, local_clock: bool) -> None:
        self._settle_s = settle_s
        #: Whether the file system's clock is ours: it is not on NFS.
        self._local_clock = local_clock
        self._seen: dict[str, _Seen] = {}

    def ready(self, folder: int, name: str, status: os.stat_result, sign: FileSign | None) -> bool:
        """Whether a file of an open folder may be taken now,
        after what the event said, or the scan (None).
        """
        # An event tells of a name: what was moved in may be gone, and a file begun in its place.
        whole = (
            sign is FileSign.MOVED
            or (sign is FileSign.CLOSED and self._complete(folder, name, status.st_size))
            or self._quiet(name, status)
        ) and not self._being_written(folder, name)
        if whole:
            self._seen.pop(name, None)
        elif name not in self._seen and len(self._seen) < _MAX_WATCHED:
            self._seen[name] = _Seen(signature(status), time.monotonic())
        return whole

    def due(self) -> list[str]:
        """Return the names that may have settled by now; who asks looks at each with ``ready``."""
        latest = time.monotonic() - self._settle_s
        return [name for name, seen in self._seen.items() if seen.since <= latest]

    def next_due_s(self) -> float | None:
        """Return in how many seconds ``due`` will have a name; None where nothing is watched."""
        first = min((seen.since for seen in self._seen.values()), default=None)
        return None if first is None else max(0.0, first + self._settle_s - time.monotonic())

    def forget(self, name: str) -> None:
        """Note that a file is gone."""
        self._seen.pop(name, None)

    def _quiet(self, name: str, status: os.stat_result) -> bool:
        now = time.monotonic()
        # Nothing that a program can set moves ctime back:
        # an old one is stillness that was seen already.
        if self._local_clock and time.time() - status.st_ctime >= self._settle_s:
            return True
        seen = self._seen.get(name)
        if seen and seen.signature == signature(status):
            return now - seen.since >= self._settle_s
        if seen:
            self._seen[name] = _Seen(signature(status), now)
        return self._settle_s == 0

    def _complete(self, folder: int, name: str, size: int) -> bool:
        """Whether a closed file is whole JSON. No other form shows whether more is to come."""
        if not name.lower().endswith(".json") or size > _PEEK_BYTES:
            return False
        try:
            data = files.content(name, _PEEK_BYTES, dir_fd=folder)
            decoders.decode(data or b"", msgspec.Raw)
        except (OSError, ValueError, RecursionError):
            return False
        return True

    def _being_written(self, folder: int, name: str) -> bool:
        """Whether somebody has the file open for writing: a slow writer may rest for any time.

        The kernel grants a read lease only where no process has. Where it does not say (another
        owner's file, some file systems), stillness has to do.
        """
        try:
            descriptor = os.open(name, trees.OPEN_FILE, dir_fd=folder)
        except OSError:
            return False
        try:
            # The signal for a writer who comes in this instant:
            # SIGURG is ignored, SIGIO would kill us.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            self._seen[name] = _Seen(signature(os.fstat(descriptor)), time.monotonic())
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False


class Inbox:
    """The inbox: claims what is dropped into one folder."""

    def __init__(self, config: Config, threads: Executor | None = None) -> None:
        #: Look at the folder, which may hang; None: those of the loop do.
        self.threads = threads
        self.folder = Path(config.paths.inbox)
        self._state = Path(config.paths.state)
        self._claimer = Claimer(self.folder, self._state)
        #: The folder, open.
        self._descriptor = -1
        self._scan_s = config.spool.scan_s
        self._polls = config.spool.watch == "poll"
        self._settling = Settling(config.spool.settle_s, local_clock=not self._polls)
        self._log = get_logger(inbox=str(self.folder))
        self._hints = Hints(self._ring)
        #: Settled files of the last scan, oldest first, and what they looked like.
        self._settled: deque[tuple[str, Signature]] = deque()
        self._next_scan = 0.0
        #: What it cannot do at this time, and since when.
        self.trouble: tuple[OSError, float] | None = None
        #: Why one of the last files could not be claimed.
        self._refused: OSError | None = None
        #: Files that a writer closed, and that were claimed a short while ago: when.
        self._written: dict[str, float] = {}
        self._logged: set[str] = set()
        self._logged_until = 0.0
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell = asyncio.Event()
        #: Held while a thread works on the folder: it may go on when no one waits for it any more.
        self._at_work = threading.Lock()

    async def start(self) -> None:
        """Make the folder if it is missing, open it, and begin to watch it.

        Raises ``OSError`` where it cannot be made or written to, or is no safe place, with the fix.
        """
        self._loop = asyncio.get_running_loop()
        await self._in_thread(self._prepare)

    async def stop(self) -> None:
        """End ``claims`` and the watching.

        What was claimed but not handed out waits in its folder.
        """
        self._stopped = True
        self._bell.set()
        leaving = self._in_thread(self._let_go)
        await asyncio.wait((leaving,), timeout=_LEAVES_S)
        if leaving.done():
            leaving.result()

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.threads, work)

    def claimed(self) -> set[str]:
        """Return the ULIDs of what an earlier run claimed and has not moved on.

        Raises ``OSError``.
        """
        ours, _ = claiming.lying(self.folder, self._state)
        return {claim.ulid for claim in ours}

    async def claims(self) -> AsyncIterator[Claim]:
        """Yield each file once it is ours, durably: first what an earlier run had claimed.

        At most ``CHUNK`` files are claimed ahead of what is taken from here.
        """
        ours, others = await self._earlier()
        if others:
            self._trouble(
                f"{len(others)} files in .claimed belong to batchd with another state "
                "directory; if that one is gone, move them back into the inbox"
            )
        for claim in ours:
            yield claim
        while not self._stopped:
            # The folder is looked at in a thread: disks may be slow.
            found = await self._in_thread(self._round)
            for claim in found:
                yield claim
            if not found:
                await self._rest()

    async def _earlier(self) -> tuple[list[Claim], list[Claim]]:
        """Return what lies claimed, as ``claims.lying`` does,
        as soon as the folders can be read.
        """
        while True:
            try:
                return await self._in_thread(partial(claiming.lying, self.folder, self._state))
            except OSError as error:
                self._ails(error)
                self._trouble(f"earlier claims cannot be looked at: {error}")
            await asyncio.sleep(min(self._scan_s, 1.0))

    async def _rest(self) -> None:
        """Wait for an event, a file that settles, or the next scan."""
        waits = (self._next_scan - time.monotonic(), self._settling.next_due_s())
        wait_s = max(0.001, min(w for w in waits if w is not None))
        try:
            async with asyncio.timeout(wait_s):
                await self._bell.wait()
        except TimeoutError:
            return
        self._bell.clear()

    def _ring(self) -> None:
        # A closed loop raises; no one listens there any more.
        if self._loop:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._bell.set)

    def _round(self) -> list[Claim]:
        """Look at what was hinted at or has settled, else at the whole folder; claim a chunk."""
        with self._at_work:
            return [] if self._stopped else self._look_round()

    def _look_round(self) -> list[Claim]:
        try:
            if not self._stands():
                self._prepare()
            hints, burst = self._hints.take()
            if burst:
                self._next_scan = 0.0
            hints |= {n: FileSign.CREATED for n in self._settling.due() if n not in hints}
            ready = [found for name, sign in hints.items() if (found := self._look(name, sign))]
            self._settled.extendleft(reversed(ready))
            scanned = not self._settled and time.monotonic() >= self._next_scan
            if scanned:
                self._scan()
            claims = self._claim()
            if scanned or self._refused:
                self._ails(self._refused)
        except OSError as error:
            self._ails(error)
            self._trouble(f"the inbox cannot be worked on: {error}")
            self._next_scan = time.monotonic() + self._scan_s
            return []
        return claims

    def _ails(self, error: OSError | None) -> None:
        """Keep what fails, from its beginning on."""
        if error is None:
            self.trouble = None
        elif self.trouble is None or self.trouble[0].errno != error.errno:
            self.trouble = (error, time.time())

    def _look(self, name: str, sign: FileSign | None) -> tuple[str, Signature] | None:
        try:
            status = os.lstat(name, dir_fd=self._descriptor)
        except OSError:
            self._settling.forget(name)
            return None
        found = self._judge(name, status, sign)
        if found and sign is FileSign.CLOSED:
            self._note_written(name)
        return found

    def _note_written(self, name: str) -> None:
        """Warn who edits a file in the inbox:
        each time that it is saved, it is claimed, and paid for.
        """
        now = time.monotonic()
        last = self._written.pop(name, None)
        if last is not None and now - last < _EDITED_S:
            self._trouble(
                f"{name} is written here again and again, and each time it is taken as a batch of its own: "
                "edit it elsewhere, and move it in when it is done"
            )
        self._written[name] = now
        if len(self._written) > _MAX_NAMES:
            del self._written[next(iter(self._written))]

    def _judge(
        self, name: str, status: os.stat_result, sign: FileSign | None
    ) -> tuple[str, Signature] | None:
        """Return a file that can be claimed now, and what it looks like."""
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
            self._trouble(f"{name} is {kind} and is left alone: drop the file itself")
            return None
        ready = self._settling.ready(self._descriptor, name, status, sign)
        return (name, signature(status)) if ready else None

    def _scan(self) -> None:
        """Find the oldest settled files, in memory that does not grow with the folder."""
        self._prepare()
        oldest = heapq.nsmallest(_WINDOW, self._candidates())
        self._settled.extend((name, look) for _, name, look in oldest)
        self._next_scan = 0.0 if len(oldest) == _WINDOW else time.monotonic() + self._scan_s

    def _candidates(self) -> Iterator[tuple[int, str, Signature]]:
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                if ignorable(entry.name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    # A user's file system is mounted there (FUSE), of which others see nothing.
                    self._trouble(f"{entry.name} cannot be looked at: {error.strerror}")
                    continue
                if found := self._judge(entry.name, status, None):
                    yield status.st_mtime_ns, *found

    def _claim(self) -> list[Claim]:
        """Claim the next chunk of settled files."""
        self._refused = None
        while self._settled and len(self._claimer) < CHUNK:
            name, look = self._settled.popleft()
            try:
                self._claimer.take(name, look)
            except PermissionError as error:
                # It is this one file, as another user's in a sticky folder: the others go on.
                self._refused = error
                self._trouble(f"{name} cannot be claimed: {error.strerror}")
        return self._claimer.taken()

    def _prepare(self) -> None:
        """Make sure that the folder is there and open,
        and that the one that is there is the one watched.
        """
        files.make_folder(self.folder)
        self._open()
        if self._polls or self._stopped:
            return
        try:
            if self._hints.watch(self._descriptor):
                self._trouble(
                    "the inbox was removed, renamed or linked elsewhere, and is watched again"
                )
        except OSError as error:
            self._trouble(f"no events, so it is looked at every {self._scan_s} s: {error.strerror}")

    def _open(self) -> None:
        """Open the folder that its path leads to now,
        with a place for claims, unless all of that stands.
        """
        if self._stands():
            return
        found = files.enter(self.folder)
        try:
            self._claimer.enter(found)
        except BaseException:
            os.close(found)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = found
        self._settled.clear()

    def _stands(self) -> bool:
        """Whether the folder's path still leads to what is open,
        and claims have a place that is safe.
        """
        if self._descriptor < 0 or not self._claimer.stands():
            return False
        try:
            return os.path.samestat(
                os.stat(self.folder), os.fstat(self._descriptor)
            )  # for each round
        except OSError:
            return False

    def _let_go(self) -> None:
        """Watch no more, and close what is open."""
        with self._at_work:
            self._hints.stop()
            self._claimer.leave()
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _trouble(self, message: str) -> None:
        """Log what somebody should know, each thing once in a while."""
        if len(self._logged) >= _MAX_LOGGED:
            if time.monotonic() < self._logged_until:
                return
            self._logged.clear()
        if message not in self._logged:
            self._logged_until = time.monotonic() + _AGAIN_S
            self._logged.add(message)
            self._log.warning(Action.INBOX_TROUBLE, message=message)
