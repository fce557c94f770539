"""Makes packs of directories, and directories of packs:
in the sandbox, since a task has written what is in both.

The program is the machine's own ``tar`` (GNU). It is spoken to over its standard input, which is a
socket: one way go the names of files, or a tar, and the other way comes a tar.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from batchd.errors import TarError, WorkspaceError
from batchd.records import Pack
from batchd.sandbox import CommandEnd, Workplace
from batchd.workspace.directory_listing import Changes, DirectoryLook, Listing, changes, look
from batchd.workspace.packfile import Lists, Writer
from batchd.workspace.packs import Shelf
from batchd.workspace.tarwatch import TarWatch

#: Owners do not travel, times and modes do; the same files make the same bytes. What cannot be read
#: is left out, and then missed. Names are bytes, and errors in English, in this locale alone.
_PACK = """LC_ALL=C exec tar --create --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --owner=0 --group=0 \\
    --ignore-failed-read --warning=no-file-changed --no-recursion --null --files-from=- --file=- >&0"""
#: Lets the folders named first be written to, up to an empty name,
#: and removes what is named behind it.
_CLEAR = """
xargs -0 -r sh -c 'chmod -f u+rwx -- "$@"; exit 0' sh
"""
_REMOVE = """
xargs -0 -r sh -c 'rm -rf -- "$@" 2> /dev/null && exit
find "$@" -type d ! -perm -u+rwx -exec chmod u+rwx {} \\;
rm -rf -- "$@"' sh
"""
_UNPACK = """LC_ALL=C exec tar --extract --file=- --preserve-permissions --no-same-owner --delay-directory-restore \\
    --warning=no-timestamp"""
#: Opens what a task's own user has closed to itself: else it could not travel.
_OPEN = "xargs -0 -r chmod -f u+rwX --"
#: What tar answers where a file changed while it was read, or went.
_CHANGED = 1
#: What it says where a file's bytes cannot be read: zeros stand in their place.
_MISREAD = "Read error at byte"
#: How long until a directory that has changed while it was packed is packed again, in seconds.
_WAITS_S = (0.05, 0.2, 0.5, 1.0)
_READ = 1 << 18
_SAID = 400

T = TypeVar("T")


async def seen(place: Workplace, timeout_s: float) -> DirectoryLook:
    """Look at a place's directory; what the task has closed to itself is opened first.

    Raises ``WorkspaceError``, ``SandboxError``.
    """
    found = await asyncio.to_thread(place.look, look)
    if found.closed:
        await _talk(place, _OPEN, _named(map(os.fsencode, found.closed)), None, timeout_s)
        found = await asyncio.to_thread(place.look, look)
    return found


@dataclass(frozen=True, slots=True)
class Packed:
    """A pack that was made."""

    pack: Pack
    #: What was to be in it, and is not: it went meanwhile, or cannot be read.
    missing: frozenset[str]


async def packed(
    place: Workplace,
    found: Changes,
    after: Listing,
    draft: Path,
    *,
    most: int,
    timeout_s: float,
) -> Packed:
    """Write what has changed in a place's directory to a draft.

    ``after``: what lies there. ``most``: bytes.

    Raises ``TarError`` where something has become another kind of thing since, ``WorkspaceError``,
    ``SandboxError``, ``OSError``.
    """
    touched = {os.path.dirname(path) for path in (*found.removed, *found.changed)}  # noqa: PTH120 (a text)
    folders = tuple(sorted(path for path in touched if path in after))
    writer = Writer(draft, Lists(removed=found.removed, folders=folders), most)
    # A folder's own mode and time come with it, behind what comes into it.
    watch = TarWatch({path: after[path] for path in (*found.changed, *folders)}, writer.add)
    try:
        if names := sorted(watch.missing):
            says = _named(map(os.fsencode, names))
            ran = await _talk(place, _PACK, says, watch.passed, timeout_s)
            watch.insist()
            _insist(ran, "what has changed cannot be packed", {0, _CHANGED})
            watch.insist(ended=True)
            insist_read(ran)
        return Packed(await asyncio.to_thread(writer.done), frozenset(watch.missing))
    except BaseException:
        writer.drop()
        raise


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what comes of an attempt that what runs in the directory may spoil.

    Raises ``TarError`` after some.
    """
    for wait_s in _WAITS_S:
        try:
            return await attempt()
        except TarError:
            await asyncio.sleep(wait_s)
    return await attempt()


async def unpacked(place: Workplace, shelf: Shelf, pack: Pack, timeout_s: float) -> None:
    """Change a place's directory to what a pack says.

    Can be repeated. Raises ``WorkspaceError``, ``SandboxError``, ``OSError``.
    """
    with shelf.reading(pack) as reading:
        await _fed(place, _CLEAR, _named(reading.folders()), timeout_s)
    with shelf.reading(pack) as reading:
        await _fed(place, _REMOVE, _named(reading.removed()), timeout_s)
        await _fed(place, _UNPACK, reading.tar(), timeout_s)


async def _fed(place: Workplace, script: str, says: Iterator[bytes], timeout_s: float) -> None:
    """Run a script for what it reads; not at all for nothing. Raises as ``unpacked`` does."""
    if first := await asyncio.to_thread(next, says, b""):
        _insist(await _talk(place, script, itertools.chain([first], says), None, timeout_s))


def everything(found: DirectoryLook) -> Changes:
    """Return that all that lies in a directory is new."""
    return changes({}, found.seen)


def _named(names: Iterable[bytes]) -> Iterator[bytes]:
    """Yield paths as programs read them: each below the directory, whatever its first letter is."""
    part: list[bytes] = []
    for number, name in enumerate(names, 1):
        part.append(b"./" + name + b"\0")
        if number % 1000 == 0:
            yield b"".join(part)
            part = []
    yield b"".join(part)


async def _talk(
    place: Workplace,
    script: str,
    says: Iterable[bytes],
    hears: Callable[[Iterator[bytes]], None] | None,
    timeout_s: float,
) -> CommandEnd:
    """Run a script whose standard input is a socket.

    Raises what ``says`` and ``hears`` raise, and ``SandboxError``.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            ways = [
                asyncio.create_task(asyncio.to_thread(_say, ours, says)),
                asyncio.create_task(asyncio.to_thread(_hear, ours, hears)),
            ]
            try:
                ran = await place.run(
                    ["sh", "-c", script, "sh"], stdin=theirs.fileno(), timeout_s=timeout_s
                )
            finally:
                # Whatever became of it, no one else holds the other end: both threads see that.
                theirs.close()
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_WR)
                outcomes = await asyncio.gather(*ways, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
    return ran


def _say(way: socket.socket, says: Iterable[bytes]) -> None:
    try:
        for part in says:
            way.sendall(part)
        way.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has ended, and says why
    except BaseException:
        way.shutdown(socket.SHUT_RDWR)
        raise


def _hear(way: socket.socket, hears: Callable[[Iterator[bytes]], None] | None) -> None:
    parts = _heard(way)
    try:
        if hears is not None:
            hears(parts)
        else:
            collections.deque(parts, maxlen=0)
    finally:
        # Who speaks on though no one hears it ends, and does not wait.
        with contextlib.suppress(OSError):
            way.shutdown(socket.SHUT_RD)


def _heard(way: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(ConnectionResetError):
        while part := way.recv(_READ):
            yield part


def _insist(
    ran: CommandEnd, what: str = "the directory cannot be unpacked", good: Collection[int] = (0,)
) -> None:
    if ran.exit_code not in good or ran.excess:
        raise WorkspaceError(f"{what}: {_why(ran)}")


def insist_read(ran: CommandEnd) -> None:
    """Raise ``TarError`` where tar could not read all of a file's bytes:
    it goes on, with zeros in their place.
    """
    if _MISREAD in ran.output:
        raise TarError(_why(ran))


def _why(ran: CommandEnd) -> str:
    if ran.excess or ran.timed_out:
        return ran.excess or f"it takes longer than {ran.seconds:,.0f} s"
    text = "; ".join(line.strip() for line in ran.output.splitlines() if line.strip())
    return (text if len(text) <= _SAID else f"{text[:_SAID]} …") or f"exit code {ran.exit_code}"
