"""Makes packs of directories, and directories of packs:
in the sandbox, since a task has written what is in both.

The program is the machine's own ``tar`` (GNU). It is spoken to over its standard input, which is a
socket: one way go the names of files, or a tar, and the other way comes a tar.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
#: The longest message, which any socket takes:
#: `dd` reads each as a whole, and ends at an empty one, as at a file's end.
_MESSAGE = 1 << 15
#: Takes packs one after another: its words are the name of each, and the parts that it has.
#: Folders that are not there yet are none to `chmod`. Tar reads what stands behind its end, as far
#: as tar writes it; a part that was not read to its end is an error, also where it seems complete.
_UNPACK = f"""
export LC_ALL=C
part() {{ dd bs={_MESSAGE} status=none || kill $$; }}
for each do
    case $each in
        folders) part | xargs -0 -r chmod -f u+rwx -- || [ $? -eq 123 ] ;;
        removed)
            part | xargs -0 -r sh -c 'rm -rf -- "$@" 2> /dev/null && exit
                find "$@" -type d ! -perm -u+rwx -exec chmod u+rwx {{}} \\;
                rm -rf -- "$@"' sh ;;
        files)
            part | tar --extract --file=- --read-full-records --preserve-permissions --no-same-owner --delay-directory-restore \\
                --warning=no-timestamp ;;
        *) echo "$each" ;;
    esac || exit
done
"""
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
    touched = {os.path.dirname(path) for path in (*found.removed, *found.changed)}
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


class PackError(WorkspaceError):
    """A pack that a directory cannot be changed by."""

    def __init__(self, pack: Pack, why: str) -> None:
        super().__init__(f"pack {_name(pack)}: {why}")
        self.pack = pack


def _name(pack: Pack) -> str:
    """Return what a pack is called in few words."""
    return pack.digest[:12]


async def unpacked(place: Workplace, shelf: Shelf, packs: Sequence[Pack], timeout_s: float) -> None:
    """Change a place's directory to what packs say, one after another, in one sandbox.

    Can be repeated. ``timeout_s``: for each. Raises ``PackError`` for the first that cannot be
    had, with those before it in the directory, ``SandboxError``, ``OSError``.
    """
    words = await asyncio.to_thread(_plan, shelf, packs)
    ran = await _talk(
        place,
        _UNPACK,
        _messages(shelf, packs),
        None,
        timeout_s * len(packs),
        words=words,
        kind=socket.SOCK_SEQPACKET,
    )
    if ran.exit_code or ran.excess:
        known = {_name(pack): pack for pack in packs}
        lines = ran.output.splitlines()
        begun = [known[line] for line in lines if line in known]
        said = "\n".join(line for line in lines if line not in known)
        raise PackError(
            (begun or packs)[-1], f"it cannot be unpacked: {_why(replace(ran, output=said))}"
        )


def _plan(shelf: Shelf, packs: Sequence[Pack]) -> list[str]:
    """Return the words for ``_UNPACK``. Raises as ``unpacked`` does."""
    words = []
    for pack in packs:
        with _blamed(pack):
            parts = [name for name, part in _parts(shelf, pack) if next(part, b"")]
        words += [_name(pack), *parts]
    return words


def _messages(shelf: Shelf, packs: Sequence[Pack]) -> Iterator[bytes]:
    """Yield what ``_UNPACK`` reads. Raises as ``unpacked`` does."""
    for pack in packs:
        with _blamed(pack):
            for _, part in _parts(shelf, pack):
                begun = False
                for data in part:
                    for at in range(0, len(data), _MESSAGE):
                        begun = True
                        yield data[at : at + _MESSAGE]
                if begun:
                    yield b""


def _parts(shelf: Shelf, pack: Pack) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the parts of a pack, with their names."""
    with shelf.reading(pack) as reading:
        yield "folders", _named(reading.folders())
    with shelf.reading(pack) as reading:
        yield "removed", _named(reading.removed())
        yield "files", reading.tar()


@contextlib.contextmanager
def _blamed(pack: Pack) -> Iterator[None]:
    """Name the pack that an error is about."""
    try:
        yield
    except WorkspaceError as error:
        raise PackError(pack, str(error)) from error


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
    *,
    words: Sequence[str] = (),
    kind: int = socket.SOCK_STREAM,
) -> CommandEnd:
    """Run a script, with ``words``, whose standard input is a socket of some ``kind``.

    Raises what ``says`` and ``hears`` raise, and ``SandboxError``.
    """
    ours, theirs = socket.socketpair(type=kind)
    with ours:
        with theirs:
            ways = [
                asyncio.create_task(asyncio.to_thread(_say, ours, says)),
                asyncio.create_task(asyncio.to_thread(_hear, ours, hears)),
            ]
            try:
                ran = await place.run(
                    ["sh", "-c", script, "sh", *words], stdin=theirs.fileno(), timeout_s=timeout_s
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


def _insist(ran: CommandEnd, what: str, good: Collection[int]) -> None:
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
