"""The way into a sandbox that stays: starts commands in it,
by a program that has entered it (``entrychild``).
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox import launch, seccomp
from batchd.sandbox.bwrap import TASK, TMP
from batchd.sandbox.cgroup import TaskCgroup
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_user import CommandUser, limits
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.syscalls import ARCHS
from batchd.sandbox.variables import usual

_PROGRAM = (sys.executable, "-I", "-S", str(Path(__file__).with_name("entrychild.py")))
#: To start Python and enter takes some 20 ms; to start a command, one.
_PATIENCE_S = 20.0
_MOST_SAID = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The command that enters, and what it brings."""

    policy: SandboxPolicy
    who: CommandUser
    env: Mapping[str, str]


class Entrance:
    """The way into one sandbox. To be closed."""

    def __init__(self, helper: ChildProcess, line: socket.socket, env: dict[bytes, bytes]) -> None:
        self._helper = helper
        self._line = line
        self._env = env
        self._turns = asyncio.Lock()
        self._hangs = False

    @classmethod
    async def open(cls, first: int, guest: Guest, group: TaskCgroup | None) -> Entrance:
        """Enter the sandbox whose first process is ``first``, a child of ours.

        Raises ``OSError``, and ``SandboxError`` where it cannot be entered.
        """
        who, machine = guest.who, platform.machine()
        given = [(kind, value) for _, kind, value in limits(guest.policy)]
        setup: dict[str, Any] = {
            "first": first,
            "directory": TASK,
            "uid": who.uid,
            "gid": who.gid,
            "limits": given,
            "filter": seccomp.program(machine),
            "clone": ARCHS[machine].clone,
        }
        variables = {**usual(who, home=TMP), **guest.env}
        env = {
            k.encode("utf-8", "replace"): v.encode("utf-8", "replace") for k, v in variables.items()
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            helper = launch.helper(_PROGRAM, theirs.fileno(), group)
        made = cls(helper, ours, env)
        try:
            await made._enter(first, setup)
        except BaseException:
            await made.close()
            raise
        return made

    async def _enter(self, first: int, setup: dict[str, Any]) -> None:
        process = os.pidfd_open(first)
        try:
            why = await self._answer(setup, [process])
        finally:
            os.close(process)
        if why:
            raise SandboxError(f"a standing sandbox cannot be entered: {why}")

    async def start(self, command: Sequence[bytes], output: int) -> int:
        """Start a command, a child of ours, and return its number.

        Raises ``OSError``, ``SandboxError``.
        """
        return await self._begun(command, [output], left=False)

    async def leave(self, command: Sequence[bytes], output: int, stdin: int) -> int:
        """Start a command that the sandbox's first process adopts. Otherwise like ``start``."""
        return await self._begun(command, [output, stdin], left=True)

    async def close(self) -> None:
        """End the helper; what it has started goes on."""
        # Who waits for an answer learns that there will be none.
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        async with self._turns:
            self._line.close()
        await self._helper.end()

    async def _begun(self, command: Sequence[bytes], descriptors: list[int], *, left: bool) -> int:
        data = marshal.dumps((list(command), self._env))
        text = memory_file(data)
        try:
            asked = {"left": left, "length": len(data)}
            number = await self._answer(asked, [text, *descriptors])
        finally:
            os.close(text)
        if not isinstance(number, int):
            raise SandboxError(f"a standing sandbox cannot be entered: {number}")
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return number

    async def _answer(self, asked: dict[str, Any], descriptors: list[int]) -> int | str:
        """Ask the helper, and return what it says: a number, or what is wrong."""
        async with self._turns:
            if self._hangs:
                return "the helper hangs"
            try:
                socket.send_fds(self._line, [marshal.dumps(asked)], descriptors)
                async with asyncio.timeout(_PATIENCE_S):
                    said = await asyncio.get_running_loop().sock_recv(self._line, _MOST_SAID)
            except TimeoutError:
                # Its answer may come yet, and is no answer to what is asked next.
                self._hangs = True
                return "the helper hangs"
            except (BrokenPipeError, ConnectionResetError):
                said = b""
        try:
            answer = marshal.loads(said)  # noqa: S302 (of a program of ours)
        except (ValueError, EOFError, TypeError):
            answer = None
        # What Python itself says at its end is no answer.
        return answer if type(answer) in {int, str} else "the helper has ended"
