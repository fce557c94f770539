"""Processes of ``python -m …`` that are there at once:
forked from one that has loaded batchd already.

To start Python and load batchd takes a quarter of a second of a processor, a daemon with its fork
server two seconds, and there are some two thousand of them. What runs is the same module, in a
process of its own with the arguments, environment, directory and descriptors that were asked for.
Only /proc shows the command line and the environment of the process that it was forked from:
tests that look there start it cold, as ``subprocess`` does.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
_SERVER = Path(__file__).with_name("warm_server.py")
#: What Python reads as it starts, and never again.
_STARTING = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_")
_NUMBER = struct.Struct("i")


#: What a process can also be given later.
_LATER = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")


def _starting(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environ.items() if k.startswith(_STARTING) and k not in _LATER}


def _changes_what_is_loaded(environ: Mapping[str, str]) -> bool:
    """Whether what it finds on its path makes another program of Python, or of batchd."""
    more = {Path(path) for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    names = ("sitecustomize.py", "usercustomize.py", "batchd")
    return any((path / name).exists() for path in more - {ROOT} for name in names)


def _split(command: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """Return what has a command run as another user, and the command."""
    if "setpriv" in command and "--" in command:
        end = command.index("--") + 1
        return tuple(command[:end]), command[end:]
    return (), command


class _Source:
    """The process that others are forked from; it ends with this one."""

    def __init__(self, prefix: Sequence[str]) -> None:
        """``prefix``: has it run as another user."""
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*prefix, sys.executable, str(_SERVER), str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=self.environ, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._turn = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        """End it; what was forked from it goes on."""
        self._line.close()
        self._process.wait(PATIENCE_S)

    def fork(self, asked: Mapping[str, Any], descriptors: Sequence[int]) -> tuple[int, int] | None:
        """Have a process with descriptors 0, 1 and 2;
        its number, and where its exit code will come.

        None: not from here.
        """
        report, theirs = os.pipe()
        try:
            with self._turn:
                socket.send_fds(self._line, [json.dumps(asked).encode()], [*descriptors, theirs])
        except OSError:
            os.close(report)
            return None
        finally:
            os.close(theirs)
        return _NUMBER.unpack(os.read(report, _NUMBER.size))[0], report


@functools.cache
def _source(prefix: tuple[str, ...]) -> _Source:
    return _Source(prefix)


def see_mounts() -> None:
    """Have what starts from now on see what is mounted:
    what another user's are forked from has a mount namespace of its own.
    """
    _source.cache_clear()


class Popen(subprocess.Popen[Any]):
    """As ``subprocess.Popen``, from a warm start wherever that makes no difference."""

    _signature = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
    #: Where the exit code comes, of one that is no child of this process.
    _report: int | None = None

    def _execute_child(self, *args: Any, **kwargs: Any) -> None:
        given = self._signature.bind(self, *args, **kwargs).arguments
        if not self._warmed(given):
            super()._execute_child(*args, **kwargs)  # type: ignore[misc]

    def _warmed(self, given: Mapping[str, Any]) -> bool:
        """Have it forked, and return whether that could be done."""
        prefix, command = _split(given["args"])
        if command[:2] != [sys.executable, "-m"] or given["preexec_fn"] or given["pass_fds"]:
            return False
        source = _source(prefix)
        environ = os.environ if given["env"] is None else given["env"]
        if _starting(environ) != _starting(source.environ) or _changes_what_is_loaded(environ):
            return False
        asked = {
            "module": command[2],
            "arguments": [os.fspath(word) for word in command[3:]],
            "environ": dict(environ),
            "cwd": os.fspath(given["cwd"] or Path.cwd()),
            "session": given["start_new_session"],
            "group": given["process_group"],
        }
        ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        forked = source.fork(
            asked, [number if end == -1 else end for number, end in enumerate(ends)]
        )
        if forked is None:
            return False
        self.pid, self._report = forked
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]
        return True

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._report is None:
            found: int | None = super()._internal_poll(*args, **kwargs)  # type: ignore[misc]
            return found
        self._look(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._report is None:
            found: int = super()._wait(timeout)  # type: ignore[misc]
            return found
        self._look(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def _look(self, timeout: float | None) -> None:
        """Take its exit code, if it comes in time."""
        if self.returncode is not None or self._report is None:
            return
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        if poll.poll(None if timeout is None else timeout * 1000):
            self.returncode = _NUMBER.unpack(os.read(self._report, _NUMBER.size))[0]
            os.close(self._report)


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def run(
    command: Sequence[str | Path],
    *,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it printed is text."""
    pipe = subprocess.PIPE
    with Popen(
        [*command], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env, cwd=cwd
    ) as process:
        try:
            output, errors = process.communicate(stdin, timeout=PATIENCE_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
