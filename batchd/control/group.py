"""The daemon's half of the group's socket: questions of members,
who may flood it and hold up nothing but each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections import Counter
from collections.abc import Awaitable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from batchd import users
from batchd.actions import Action
from batchd.control import members
from batchd.control.answering import RequestHandlers, answered, line_of, peer, refused
from batchd.control.place import NAME
from batchd.control.socket_server import file_of
from batchd.log import get_logger

T = TypeVar("T")

#: A question is never longer.
_MAX_LINE = 1 << 14
#: Connections at a time, in all and of one user. What is more waits unaccepted, or is refused.
_CLIENTS = 64
_OF_ONE = 16
#: How long a connection may be silent, or take nothing of its answer (seconds).
_IDLE_S = 30.0
#: How long one is kept that is refused: so a flood of them is as slow.
_HELD_S = 0.5
#: Between two questions of one user.
_PACE_S = 0.01
#: Until the next try, where none can be accepted.
_AGAIN_S = 1.0
_MODE = 0o660
_FOLDER_MODE = 0o710


@dataclass(slots=True, eq=False)
class _Open:
    """A socket that listens."""

    listener: socket.socket
    gid: int
    #: Its file, as the kernel knows it.
    file: tuple[int, int] | None
    accepting: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class GroupServer:
    """The server for a group that may drop files into the inbox."""

    _inbox: Path
    _state: Path
    _commands: RequestHandlers
    #: Look at the inbox, which may hang.
    _threads: Executor | None
    #: Why members cannot ask, although they may drop; empty: they can.
    problem: str = ""
    _open: _Open | None = None
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CLIENTS))
    _clients: set[asyncio.Task[None]] = field(default_factory=set)
    _connected: Counter[int] = field(default_factory=Counter)
    #: When each user's next question has its turn.
    _turns: dict[int, float] = field(default_factory=dict)

    async def look(self) -> None:
        """Listen where a group may drop, and as that group;
        again where the socket was taken away; else not at all.
        """
        loop = asyncio.get_running_loop()
        gid = await loop.run_in_executor(self._threads, members.dropping, self._inbox)
        place = members.folder(self._state)
        known = self._open
        if known and known.gid == gid and file_of(place) == known.file and _right(place, gid):
            return
        self._close()
        if gid is None:
            self.problem = ""
            return
        try:
            self._listen(place, gid)
        except OSError as error:
            self._failed(place, gid, error)
        else:
            self.problem = ""

    async def stop(self) -> None:
        """Close the socket and take it away; who still waits for an answer gets none."""
        self._close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _listen(self, place: Path, gid: int) -> None:
        descriptor = _entered(place, gid)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=descriptor)
            listener.bind(f"/proc/self/fd/{descriptor}/{NAME}")
            # No client connects before it listens.
            os.chown(NAME, -1, gid, dir_fd=descriptor, follow_symlinks=False)
            os.chmod(NAME, _MODE, dir_fd=descriptor)
            listener.listen(_OF_ONE)
        except OSError:
            listener.close()
            raise
        finally:
            os.close(descriptor)
        accepting = asyncio.get_running_loop().create_task(self._accepting(listener))
        self._open = _Open(listener, gid, file_of(place), accepting)

    def _close(self) -> None:
        if self._open is None:
            return
        known, self._open = self._open, None
        known.accepting.cancel()
        known.listener.close()
        place = members.folder(self._state)
        if file_of(place) == known.file:
            with contextlib.suppress(OSError):
                (place / NAME).unlink()

    def _failed(self, place: Path, gid: int, error: OSError) -> None:
        """Note why members cannot ask: once, for it changes nothing for other users."""
        group = users.group(gid)
        problem = (
            f"members of {group} may drop files, and cannot ask what becomes of them: {place}: {error.strerror}; "
            f"make it a folder of this user with the group {group} and mode 710, and add this "
            "user to that group"
        )
        if problem != self.problem:
            get_logger().warning(Action.CONTROL_TROUBLE, path=str(place), message=problem)
        self.problem = problem

    async def _accepting(self, listener: socket.socket) -> None:
        """Accept one after another, and no more than there is room for."""
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:  # too many descriptors, perhaps
                self._room.release()
                await asyncio.sleep(_AGAIN_S)
                continue
            client = loop.create_task(self._served(sock))
            self._clients.add(client)
            client.add_done_callback(self._left)

    def _left(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        self._room.release()

    async def _served(self, sock: socket.socket) -> None:
        """Answer one connection, until it goes, or is silent for too long."""
        uid = peer(sock).uid
        self._connected[uid] += 1
        try:
            if self._connected[uid] > _OF_ONE:
                await _turned_away(sock)
            else:
                await self._answers(sock)
        finally:
            self._connected[uid] -= 1
            if not self._connected[uid]:
                del self._connected[uid]

    async def _answers(self, sock: socket.socket) -> None:
        by = peer(sock, member=True)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE)
        try:
            while (line := await _in_time(line_of(reader))) is not None:
                if not line:
                    writer.write(refused(f"a question has at most {_MAX_LINE} bytes"))
                    await _in_time(writer.drain())
                    break
                await self._turn(by.uid)
                writer.write(await answered(line, by, self._commands, members.VERBS))
                await _in_time(writer.drain())
        except OSError:  # it is gone, or too slow
            writer.transport.abort()
        finally:
            writer.close()

    async def _turn(self, uid: int) -> None:
        """Wait until a user's next question has its turn."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._turns.get(uid, 0.0))
        self._turns[uid] = at + _PACE_S
        await asyncio.sleep(at - now)


async def _turned_away(sock: socket.socket) -> None:
    with sock:
        with contextlib.suppress(OSError):
            sock.send(refused(f"at most {_OF_ONE} questions at a time: try again", 3))
        await asyncio.sleep(_HELD_S)


async def _in_time(work: Awaitable[T]) -> T:
    """Return what work returns. Raises ``TimeoutError`` where a connection is too slow for it."""
    async with asyncio.timeout(_IDLE_S):
        return await work


def _right(place: Path, gid: int) -> bool:
    """Whether the folder is as it was made."""
    try:
        found = os.lstat(place)
    except OSError:
        return False
    return found.st_gid == gid and stat.S_IMODE(found.st_mode) == _FOLDER_MODE


def _entered(place: Path, gid: int) -> int:
    """Return a descriptor of the folder, which the group may enter and we alone write to.

    Raises ``OSError``.
    """
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to the user {users.user(found.st_uid)}")
        if found.st_gid != gid:
            os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, _FOLDER_MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
