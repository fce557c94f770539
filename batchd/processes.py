"""Processes of ours: how one loads its modules, the command lines of those that it starts, what
they do there, and how one that holds keys is sealed.

Those that are started run in a Python of their own, which loads nothing that a folder, a variable
or a start-up file could put in its way.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from batchd.masking import names_secret


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Load everything that is imported within it as a whole.

    The collector waits, for nothing of it is garbage, and to look for it again and again takes a
    sixth of the time. So does SIGINT: what an extension is at as it comes,
    as pydantic at its validators, would lose it, and go on.
    """
    collecting = gc.isenabled()
    gc.disable()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ROOT = str(Path(__file__).parents[1])


def module(name: str, *arguments: str) -> list[str]:
    """Return the command line of the function ``main`` of one of our modules."""
    return _command(f"import {name} as module; sys.exit(module.main())", arguments)


def program(text: str, *arguments: str) -> list[str]:
    """Return the command line of a program that is given as text."""
    return _command(f"exec({text!r})", arguments)


def _command(run: str, arguments: tuple[str, ...]) -> list[str]:
    # Isolated (-I): no PYTHON… variable, no working directory. Without `site` (-S): no .pth, no
    # sitecustomize.py; it finds what this process has found,
    # whose first entry is the folder of the script or the working directory.
    found = sys.path if sys.flags.safe_path else sys.path[1:]
    paths = [_ROOT, *(path for path in found if path and path != _ROOT)]
    # `site` would also distinguish a virtual environment from the Python that it was made of.
    place = f"sys.prefix, sys.exec_prefix = {sys.prefix!r}, {sys.exec_prefix!r}"
    program = f"import sys; sys.path[:] = {paths!r}; {place}; {run}"
    return [sys.executable, "-I", "-S", "-c", program, *arguments]


_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
#: Who goes first where the machine is short of memory: what it makes can be made again.
_OOM_SCORE = "800"


def end_with(parent: str, *, expendable: bool = False) -> None:
    """Have this process end with the one that started it, by its number: in a container, 1 may be
    that itself.

    ``expendable``: where the machine is short of memory, it is killed before others.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # it died before the line above
    if expendable:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


#: Of a message to a child and of its answers: whether it is about a bug, and how many bytes follow.
HEAD = struct.Struct("!?Q")


def serve(work: Callable[[bytes], Iterable[bytes]]) -> int:
    """Do jobs until standard input ends: what a child of ``batchd.children`` does.

    ``work`` yields the answers to one, each as soon as there is one. An error of it is the answer.
    """
    limit(resource.RLIMIT_CORE, 0)
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer

    def say(body: bytes, *, bug: bool = False) -> None:
        answers.write(HEAD.pack(bug, len(body)) + body)
        answers.flush()

    say(b"")  # it is ready
    while head := jobs.read(HEAD.size):
        try:
            for answer in work(jobs.read(HEAD.unpack(head)[1])):
                say(answer)
        except Exception as error:  # noqa: BLE001 (a bug: this job fails, and the next may not)
            import traceback  # which no job needs else

            trace = traceback.format_exc()
            say(json.dumps([f"{type(error).__name__}: {error}", trace]).encode(), bug=True)
    return 0


def limit(what: int, most: int) -> None:
    """Set one of the kernel's limits on this process; a later job may have another."""
    hard = resource.getrlimit(what)[1]
    unlimited = hard == resource.RLIM_INFINITY
    resource.setrlimit(what, (most if unlimited else min(most, hard), hard))


#: Has the SDK write every request, address and body, to stderr.
_SDK_LOG_VARIABLE = "OPENAI_LOG"


def seal() -> None:
    """Close this process to core dumps and debuggers, so that no other one of the same user learns
    its keys from its memory or its /proc/PID/environ; root may still look.

    A program that it starts is open again: what is passed to one must be no secret.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forget(names: Iterable[str]) -> None:
    """Take variables out of this process's environment:
    these, and all whose names are those of secrets.

    No child inherits them; and where they stood,
    in the memory that /proc/PID/environ shows, are zeros.
    """
    wanted = {_SDK_LOG_VARIABLE, *names, *filter(names_secret, os.environ)}
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in wanted & os.environ.keys():
        if address := libc.getenv(os.fsencode(name)):
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
        del os.environ[name]
