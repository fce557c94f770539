"""Makes packs of directories, and directories of packs: in the sandbox, since a task has written what is in both.

The program is the machine's own ``tar`` (GNU). It is spoken to over its standard input, which is a socket: one way
go the names of files, or a tar, and the other way comes a tar.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from batchd.errors import WorkspaceError
from batchd.records import Pack
from batchd.sandbox import CommandEnd, Workplace
from batchd.workspace.directory_listing import Changes, DirectoryLook, Listing, changes, look
from batchd.workspace.packs import Lists, Reading, Writer

#: Owners do not travel, times and modes do; the same files make the same bytes. What cannot be read is left out.
_PACK = """exec tar --create --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --owner=0 --group=0 \\
    --ignore-failed-read --warning=no-file-changed --no-recursion --null --files-from=- --file=- >&0"""
#: Lets the folders named first be written to, up to an empty name, and removes what is named behind it.
_CLEAR = """
xargs -0 -r sh -c 'chmod -f u+rwx -- "$@"; exit 0' sh
"""
_REMOVE = """
xargs -0 -r sh -c 'rm -rf -- "$@" 2> /dev/null && exit
find "$@" -type d ! -perm -u+rwx -exec chmod u+rwx {} \\;
rm -rf -- "$@"' sh
"""
_UNPACK = """exec tar --extract --file=- --preserve-permissions --no-same-owner --delay-directory-restore \\
    --warning=no-timestamp"""
#: Opens what a task's own user has closed to itself: else it could not travel.
_OPEN = "xargs -0 -r chmod -f u+rwX --"
#: What tar answers where a file changed while it was read, or went.
_CHANGED = 1
_READ = 1 << 18
_SAID = 400


async def seen(place: Workplace, timeout_s: float) -> DirectoryLook:
    """Look at a place's directory; what the task has closed to itself is opened first. Raises ``WorkspaceError``, ``SandboxError``."""
    found = await asyncio.to_thread(place.look, look)
    if found.closed:
        await _talk(place, _OPEN, _named(found.closed), None, timeout_s)
        found = await asyncio.to_thread(place.look, look)
    return found


async def packed(
    place: Workplace,
    found: Changes,
    after: Listing,
    draft: Path,
    *,
    most: int,
    timeout_s: float,
) -> Pack:
    """Write what has changed in a place's directory to a draft. ``after``: what lies there. ``most``: bytes.

    Raises ``WorkspaceError``, ``SandboxError``, ``OSError``.
    """
    touched = {os.path.dirname(path) for path in (*found.removed, *found.changed)}  # noqa: PTH120 (a text)
    folders = tuple(sorted(path for path in touched if path in after))
    writer = Writer(draft, Lists(removed=found.removed, folders=folders), most)
    try:
        # A folder's own mode and time come with it, behind what comes into it.
        if names := sorted({*found.changed, *folders}):
            ran = await _talk(place, _PACK, _named(names), writer.add, timeout_s)
            _insist(ran, "what has changed cannot be packed", {0, _CHANGED})
        return await asyncio.to_thread(writer.done)
    except BaseException:
        writer.drop()
        raise


async def unpacked(place: Workplace, pack: Reading, timeout_s: float) -> None:
    """Have a place's directory become what a pack says. Can be repeated. Raises ``WorkspaceError``, ``SandboxError``, ``OSError``."""
    for script, names in ((_CLEAR, pack.lists.folders), (_REMOVE, pack.lists.removed)):
        if names:
            _insist(await _talk(place, script, _named(names), None, timeout_s))
    tar = pack.tar()
    if first := next(tar, b""):  # tar takes nothing at all for none
        _insist(await _talk(place, _UNPACK, itertools.chain([first], tar), None, timeout_s))


def everything(found: DirectoryLook) -> Changes:
    """Return that all that lies in a directory is new."""
    return changes({}, found.seen)


def _named(names: Iterable[str]) -> Iterator[bytes]:
    """Yield paths as programs read them: each below the directory, whatever its first letter is."""
    part: list[bytes] = []
    for number, name in enumerate(names, 1):
        part.append(b"./" + os.fsencode(name) + b"\0")
        if number % 1000 == 0:
            yield b"".join(part)
            part = []
    yield b"".join(part)


async def _talk(
    place: Workplace,
    script: str,
    says: Iterable[bytes],
    hears: Callable[[bytes], None] | None,
    timeout_s: float,
) -> CommandEnd:
    """Run a script whose standard input is a socket. Raises what ``says`` and ``hears`` raise, and ``SandboxError``."""
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


def _hear(way: socket.socket, hears: Callable[[bytes], None] | None) -> None:
    try:
        while part := way.recv(_READ):
            if hears is not None:
                hears(part)
    except ConnectionResetError:
        pass
    except BaseException:
        way.shutdown(socket.SHUT_RDWR)
        raise


def _insist(
    ran: CommandEnd, what: str = "the directory cannot be unpacked", good: Collection[int] = (0,)
) -> None:
    if ran.exit_code not in good or ran.excess:
        raise WorkspaceError(f"{what}: {_why(ran)}")


def _why(ran: CommandEnd) -> str:
    if ran.excess or ran.timed_out:
        return ran.excess or f"it takes longer than {ran.seconds:,.0f} s"
    text = "; ".join(line.strip() for line in ran.output.splitlines() if line.strip())
    return (text if len(text) <= _SAID else f"{text[:_SAID]} …") or f"exit code {ran.exit_code}"
