"""A sandbox, and the way into it: a helper that makes it, starts commands there, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import marshal
import os
import platform
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from batchd import trees
from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox import launch, process_table, seccomp
from batchd.sandbox.bwrap import TASK, TMP, CommandView
from batchd.sandbox.cgroup import TaskCgroup
from batchd.sandbox.child import DYING_S, dead, readable, reaped, running
from batchd.sandbox.command_user import CommandUser, as_root, limits, usual
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.guard import guard
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.resource_shortage import SHORTAGE_ERRNOS

#: Of linux/sched.h.
_NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
_PROGRAM = (sys.executable, "-I", "-S", str(Path(__file__).with_name("entry.py")))
#: To enter, and to start a command, takes a millisecond.
_ANSWER_S = 20.0
_MAX_ANSWER_BYTES = 4096
#: Of what bwrap says, the helper passes on no more than half of this.
_MAX_SAID_BYTES = 1 << 14


class Starter:
    """The process that forks helpers, and has loaded what they need: one a process."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._number = 0

    def fork(
        self, setup: bytes, answers: socket.socket, given: Sequence[int], group: TaskCgroup | None
    ) -> None:
        """Have a helper forked, a child of this process, in a cgroup where one is given,
        which answers on ``answers``. Raises ``OSError``.
        """
        if not (self._line and running(os.P_PID, self._number, os.WNOWAIT)):
            self.close()
            self._start()
        assert self._line is not None, "it has started"
        with trees.held(memory_file(setup)) as text:
            groups = [group.descriptor] if group else []
            asked = seccomp.clone_number(platform.machine()), len(setup), len(groups)
            theirs = [answers.fileno(), text, *groups, *given]
            socket.send_fds(self._line, [marshal.dumps(asked)], theirs)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            output = theirs.fileno()
            number = launch.spawn(_PROGRAM[0], list(_PROGRAM), {}, (), stdin=None, output=output)
        # No guard: it ends with this process by itself, and so do helpers,
        # once they have waited for what they have started.
        self._line, self._number = ours, number

    def close(self) -> None:
        """End it until it is needed again; helpers go on."""
        if self._line is None:
            return
        self._line.close()
        self._line = None
        if running(os.P_PID, self._number, os.WNOWAIT) is not None:
            # Not waited for yet: the number is still its own.
            os.kill(self._number, signal.SIGKILL)
            os.waitpid(self._number, 0)


def starter() -> Starter:
    """Return this process's starter."""
    return _of(os.getpid())


@functools.cache
def _of(_pid: int) -> Starter:
    return Starter()


class NotMadeError(Exception):
    """bwrap has made no sandbox; as a string, what it said."""


class Entrance:
    """One sandbox, and the way into it for one who asks at a time. To be closed."""

    def __init__(self, line: socket.socket, group: TaskCgroup | None) -> None:
        self._line = line
        #: What holds the sandbox and its helper, if anything does.
        self.group = group
        #: The helper, a child of this process; 0: it is not known yet.
        self.number = 0
        #: bwrap, a child of the helper, and the sandbox's first process, a child of bwrap's.
        self.pid = self.first = 0
        #: What stands for the first process; -1: it is not made yet.
        self.process = -1
        #: What the helper has started, and nobody waits for.
        self.drains: set[int] = set()

    @classmethod
    def begin(
        cls,
        bwrap: str,
        view: CommandView,
        folders: TaskFolders,
        *,
        policy: SandboxPolicy,
        who: CommandUser,
        env: Mapping[str, str],
        network: bool,
        group: TaskCgroup | None,
        cover: Sequence[str],
    ) -> Self:
        """Begin a sandbox, whose commands run as ``who``, with variables beside the usual ones.

        ``network``: it shares the machine's. ``cover``: options of bwrap's that lay something over
        what is seen there. Raises ``OSError``.
        """
        variables = {**usual(who, home=TMP), **env}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs, launch.sandboxed(bwrap, view, folders, cover) as (words, given):
                setup: dict[str, Any] = {
                    "words": words,
                    "at": launch.GIVEN,
                    "namespaces": _namespaces(network=network),
                    "directory": TASK,
                    "uid": who.uid,
                    "gid": who.gid,
                    "limits": [(kind, value) for _, kind, value in limits(policy)],
                    "filter": seccomp.program(platform.machine(), sets_ids=policy.sets_ids),
                    "environment": {_encoded(k): _encoded(v) for k, v in variables.items()},
                }
                starter().fork(marshal.dumps(setup), theirs, given, group)
        except (BrokenPipeError, ConnectionResetError) as error:
            ours.close()
            # Who forks has ended, and is started again: nothing has run.
            raise BlockingIOError(errno.EAGAIN, str(error)) from None
        except BaseException:
            ours.close()
            raise
        return cls(ours, group)

    async def opened(self) -> None:
        """Return when the sandbox is made, and entered.

        Raises ``OSError``, ``NotMadeError``, and ``SandboxError`` where it cannot be entered.
        """
        await readable(self._line.fileno())
        self._begun()

    def _begun(self) -> None:
        said, descriptors = b"", list[int]()
        with contextlib.suppress(ConnectionResetError):
            said, descriptors, _, _ = socket.recv_fds(self._line, _MAX_SAID_BYTES, 1)
        if not said:
            # Who forks, or the helper, has ended: nothing has run.
            raise BlockingIOError(errno.EAGAIN, _GONE)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self.process = descriptor
        self.number, self.pid, self.first, wrong = _read(said)
        if isinstance(wrong, bytes):
            raise NotMadeError(wrong.decode("utf-8", "replace"))
        if wrong is not None:
            number, words = wrong
            if number in SHORTAGE_ERRNOS:
                raise OSError(number, words)
            raise SandboxError(f"a sandbox cannot be entered: {words}")
        if self.process < 0:
            raise _no_room()
        guard().watch(self.pid)

    @property
    def frame(self) -> frozenset[int]:
        """Processes of ours that hold it, and start and adopt what runs there."""
        return frozenset({self.number, self.pid, self.first})

    @property
    def alive(self) -> bool:
        """Whether its first process has not ended yet."""
        ended = select.poll()
        ended.register(self.process, select.POLLIN)
        return not ended.poll(0)

    def kill(self) -> None:
        """Kill what runs there; where it is not made yet, see that it is not."""
        if self.process < 0:
            self._hang_up()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process, signal.SIGKILL)

    async def close(self) -> None:
        """Kill what runs there, and return when all of it, and the helper, is dead.

        Raises ``SandboxError``.
        """
        self.kill()
        self._hang_up()
        cancelled = False
        try:
            if not self.number and await readable(self._line.fileno(), DYING_S):
                with contextlib.suppress(OSError, NotMadeError, SandboxError):
                    self._begun()
                self.kill()
            # The helper waits for it from now on.
            guard().forget(self.pid)
            if self.number:
                cancelled = await dead(self.number)
                if running(os.P_PID, self.number, os.WNOWAIT):
                    raise SandboxError("a command cannot be killed: it hangs in the kernel")
                if reaped(self.number) != 0 and self.pid:
                    await self._without_helper()
        finally:
            self._line.close()
            if self.process >= 0:
                os.close(self.process)
        if cancelled:
            raise asyncio.CancelledError

    async def _without_helper(self) -> None:
        """Wait for what had entered when the helper was killed, which did not wait for it,
        and for bwrap: they are children of ours by now.
        """
        with contextlib.suppress(OSError):
            namespace = process_table.namespace(self.first)
            for _ in range(process_table.LOOKS):
                process_table.wait_for_strays(namespace, self.first)
                if not self.alive:
                    break
                await asyncio.sleep(process_table.PAUSE_S)
        if running(os.P_PID, self.pid, os.WNOWAIT):
            os.kill(self.pid, signal.SIGKILL)
        await dead(self.pid)
        running(os.P_PID, self.pid)
        # Where bwrap was killed first, it did not wait for the first process.
        running(os.P_PIDFD, self.process)

    def _hang_up(self) -> None:
        """Have the helper wait for what it has started, which is about to die, and end."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    def start(self, command: Sequence[bytes], output: int, stdin: int | None) -> None:
        """Have a command started: the answer comes at its end.

        Raises ``OSError`` where it did not begin.
        """
        self._ask("command", command, output, *([] if stdin is None else [stdin]))

    async def ended(self, within_s: float) -> bool:
        """Return whether the command that was started last ends within a time."""
        return await readable(self._line.fileno(), max(0.0, within_s))

    @property
    def answer(self) -> int:
        """The exit code of a command that has ended, as a shell has it.

        Raises ``OSError`` where it has not begun, and ``SandboxError`` where that is not known.
        """
        try:
            return _number(_read(self._line.recv(_MAX_ANSWER_BYTES)))
        except ConnectionResetError:
            raise SandboxError(_GONE) from None

    @property
    def command(self) -> int:
        """The number of the command that runs, or has just ended: its own until another one
        is started. Raises ``OSError``.
        """
        ours = {self.pid, *self.drains}
        return next(
            (number for number in process_table.left_by(self.number) if number not in ours), 0
        )

    async def drain(self, command: Sequence[bytes], stdin: int) -> None:
        """Start a command whose end nobody waits for. Raises like ``answer``."""
        self.drains.intersection_update(process_table.left_by(self.number))
        self._ask("left", command, stdin)
        self.drains.add(_number(await self._answer()))

    async def listening(self, port: int) -> socket.socket:
        """Return a socket that listens on the sandbox's loopback.

        Raises ``OSError``, ``SandboxError``.
        """
        socket.send_fds(self._line, [marshal.dumps(("listen", port))], [])
        await self._waited()
        said, descriptors, _, _ = socket.recv_fds(self._line, _MAX_ANSWER_BYTES, 1)
        _number(_read(said))
        if not descriptors:
            raise _no_room()
        os.set_inheritable(descriptors[0], False)
        made = socket.socket(fileno=descriptors[0])
        made.setblocking(False)
        return made

    def _ask(self, kind: str, command: Sequence[bytes], *streams: int) -> None:
        data = marshal.dumps(list(command))
        with trees.held(memory_file(data)) as text:
            try:
                socket.send_fds(self._line, [marshal.dumps((kind, len(data)))], [text, *streams])
            except (BrokenPipeError, ConnectionResetError):
                raise ProcessLookupError(errno.ESRCH, _GONE) from None  # nothing has begun

    async def _answer(self) -> Any:
        await self._waited()
        return _read(self._line.recv(_MAX_ANSWER_BYTES))

    async def _waited(self) -> None:
        if not await readable(self._line.fileno(), _ANSWER_S):
            raise SandboxError("a sandbox cannot be entered: the helper hangs")


def _namespaces(*, network: bool) -> int:
    """Return which namespaces a helper enters: it fails where a sandbox does not have one.

    What it shares with the machine not everybody may enter, and root may.
    """
    kinds = set(_NAMESPACES) - ({"user"} if as_root() else set())
    return sum(_NAMESPACES[kind] for kind in kinds - ({"net"} if network else set()))


_GONE = "a sandbox cannot be entered: the helper has ended"


def _read(said: bytes) -> Any:
    """Return an answer of a helper. Raises ``SandboxError`` where there is none."""
    if not said:
        raise SandboxError(_GONE)
    return marshal.loads(said)  # noqa: S302 (of a program of ours)


def _no_room() -> OSError:
    """Return why a descriptor that was sent is not here."""
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _number(answer: int) -> int:
    """Return the number that an answer is. Raises the ``OSError`` that it may be."""
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
