"""Loads batchd, and becomes whatever module of it ``warm.py`` asks for,
each time in a fork of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn, TextIO

import batchd
from batchd import config
from batchd.spool import taskfile

_NUMBER = struct.Struct("i")
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
#: Its descriptors are those of the process that asked;
#: they are not to be closed with the streams that were here before.
_kept: list[TextIO] = [sys.stdin, sys.stdout, sys.stderr]


#: Modules and commands that start workers.
_POOLS = {"serve", "run", "scripted_daemon"}
#: What batchd imports once it is needed, and every daemon needs.
_NEEDED = (
    *("genai_prices.data_snapshot", "multiprocessing.popen_forkserver", "structlog"),
    "standin.server",
)


def _load() -> None:
    """Import all of batchd that is installed, and the stand-in,
    but for what runs as it is imported.
    """
    names = [found.name for found in pkgutil.walk_packages(batchd.__path__, "batchd.")]
    for name in (*names, *_NEEDED):
        if not name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # of an extra that is not there
                importlib.import_module(name)
    # Where the lifecycle and the daemon's own classes differ, the daemon ends.
    importlib.import_module("shadow").install()
    # And what each builds when it reads its first configuration, and its first task file.
    settings = config.load(Path(os.devnull), {})
    taskfile.parse(b'[{"first_prompt": "x"}]', "warm.json", settings)
    gc.collect()
    gc.freeze()


def _asked(line: socket.socket) -> dict[str, Any] | None:
    """Return what a process is to become, in that process;
    None in this one, once no process asks any more.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 4)
        if not data:
            return None
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            line.close()
            return _forked(json.loads(data), descriptors)
        for fd in descriptors:
            os.close(fd)


def _forked(asked: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """Fork once more, and return in the child; here,
    report its number and in the end its exit code.
    """
    *standard, report = descriptors
    if child := os.fork():
        for fd in (*standard, 0, 1, 2):
            os.close(fd)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        os.write(report, _NUMBER.pack(child))
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(report, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os._exit(0)
    os.close(report)
    for number, fd in enumerate(standard):
        os.dup2(fd, number + 100)  # none of them is in the way of another one's number
        os.close(fd)
    for number in range(3):
        os.dup2(number + 100, number)
        os.close(number + 100)
    return asked


def _streams() -> None:
    """Have standard streams as Python makes them when it starts."""
    for name, mode, fd in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        before = getattr(sys, name)
        raw = io.FileIO(fd, mode, closefd=False)
        stream = io.TextIOWrapper(
            raw if before.write_through and fd else _buffered(raw, fd),
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=fd == 2 or os.isatty(fd),
            write_through=before.write_through,
        )
        stream.mode = mode  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _buffered(raw: io.FileIO, fd: int) -> io.BufferedIOBase:
    return io.BufferedWriter(raw) if fd else io.BufferedReader(raw)


def _become(asked: dict[str, Any]) -> None:
    """Run a module as ``python -m`` does."""
    if asked["session"]:
        os.setsid()
    elif asked["group"] not in (None, -1):
        os.setpgid(0, asked["group"])
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[0] = asked["cwd"]
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in more if path and path not in sys.path]
    time.tzset()
    arguments = {*asked["arguments"]}
    if "run" in arguments:
        os.register_at_fork(after_in_child=_Later())  # it forks its daemon off
    elif asked["module"] in _POOLS or _POOLS & arguments:
        _keep_for_workers()
    _streams()
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.modules.pop(asked["module"], None)
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _end(end.code)
    except BaseException as error:  # noqa: BLE001 (what Python itself does with it)
        sys.excepthook(type(error), error, error.__traceback__)
        _end(-signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)
    _end(0)


class _Later:
    """Does that in the first process that is forked."""

    def __init__(self) -> None:
        self._done = False

    def __call__(self) -> None:
        if not self._done:
            self._done = True
            try:
                _keep_for_workers()
            except SystemExit as end:  # of a worker, which a hook of Python's would not let end
                _end(end.code)


def _keep_for_workers() -> None:
    """Fork a process that knows nothing yet of what this one becomes,
    and have it be this one's fork server, the first time.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        _serve_forks(theirs)
    theirs.close()
    start = util.spawnv_passfds

    def spawn(path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        if "multiprocessing.forkserver" not in arguments[-1]:
            return start(path, arguments, descriptors)
        util.spawnv_passfds = start
        mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        asked = {
            "code": arguments[-1],
            "environ": dict(os.environ),
            "descriptors": [*descriptors],
            "mask": mask,
            "limits": {kind: resource.getrlimit(kind) for kind in _LIMITS},
        }
        socket.send_fds(ours, [json.dumps(asked).encode()], descriptors)
        ours.close()
        return pid

    util.spawnv_passfds = spawn


def _serve_forks(line: socket.socket) -> NoReturn:
    """Wait for what the fork server is to run, and run it;
    end with the process that would report it.
    """
    data, received, _, _ = socket.recv_fds(line, 1 << 20, 16)
    if not data:
        os._exit(0)
    line.close()
    asked = json.loads(data)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in received]
    os.closerange(3, 200)
    for fd, number in zip(high, asked["descriptors"], strict=True):
        os.dup2(fd, number)
    os.closerange(200, 300)
    os.environ.clear()
    os.environ.update(asked["environ"])
    for kind, limits in asked["limits"].items():
        resource.setrlimit(int(kind), limits)
    _streams()
    sys.argv = ["-c"]
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["mask"])
    exec(asked["code"], {"__name__": "__main__"})
    _end(0)


def _end(code: object) -> NoReturn:
    """End as Python does, short of taking each module apart:
    that would touch, and so copy, all memory that is shared.
    """
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if (code or 0) < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code or 0)


if __name__ == "__main__":
    _load()
    if (what := _asked(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _become(what)
