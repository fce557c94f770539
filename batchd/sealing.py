"""The seal of a process that holds keys: no other process on this machine learns them.

The kernel writes no core dump of it, lets no other process of the same user look into its memory or
its /proc/PID/environ, and the keys are gone from the environment that it was started with.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable

from batchd.masking import names_secret

_PR_SET_DUMPABLE = 4
#: Has the SDK write every request, address and body, to stderr.
_SDK_LOG_VARIABLE = "OPENAI_LOG"


def seal() -> None:
    """Close this process to core dumps and debuggers; root may still look.

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
