"""What a worker on another machine has beside its work: a lease, which says how long it may go on
without word from the daemon, and what it finds there: keys, the daemon's folders, room on its disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from batchd import wire
from batchd.config import operator_files
from batchd.errors import NotPossibleError
from batchd.pool import code, shared_folders
from batchd.records import Endpoint, SandboxPolicy

#: Heartbeats whose answers may be under way.
_KEPT = 64
#: How long after its lease a worker that has not ended by itself is killed, in seconds.
_GRACE_S = 1.0
#: What the sandbox needs of the machine's own disk, in bytes.
_OWN_ROOM = 64 << 20


def now() -> float:
    """Return seconds of a clock that no one sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The worker's view of its lease.

    It counts from when a heartbeat was sent, the daemon's from when that came:
    so it never outlasts the daemon's.
    """

    def __init__(self, first_s: float, report: Callable[[float], None]) -> None:
        """``first_s``: until the daemon has said how long it lasts.

        ``report``: takes each end of it, by ``now``.
        """
        self._lasts_s = 0.0
        self._report = report
        self._until = now() + first_s
        report(self._until)
        self._number = 0
        #: When each heartbeat was sent whose answer has not come.
        self._sent: dict[int, float] = {}

    @property
    def lapsed(self) -> bool:
        """Whether the worker may do nothing more."""
        return now() >= self._until

    def lasts(self, lease_s: float) -> None:
        """Take how long it lasts from each renewal on, in seconds, and from now on at most."""
        self._lasts_s = lease_s
        self._until = min(self._until, now() + lease_s)
        self._report(self._until)

    def sending(self) -> int:
        """Return the number of the heartbeat that is sent now."""
        self._number += 1
        self._sent[self._number] = now()
        self._sent.pop(self._number - _KEPT, None)
        return self._number

    def renewed(self, number: int) -> None:
        """Take the daemon's answer to a heartbeat."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._until = sent + self._lasts_s
            self._report(self._until)


class Deadline:
    """A timer of the kernel that kills this process:
    also one that hangs, or was stopped and never goes on.

    See timer_create(2), and timespec(3), whose two fields are as wide as a C ``long`` here.
    """

    _EVENT, _SIGEV_SIGNAL, _TIMER_ABSTIME = struct.Struct("@Pii"), 0, 1
    _EVENT_BYTES, _TIMES = 64, struct.Struct("@llll")

    def __init__(self) -> None:
        """Raise ``OSError`` where the kernel has none to give."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = self._EVENT.pack(0, signal.SIGKILL, self._SIGEV_SIGNAL).ljust(
            self._EVENT_BYTES, b"\0"
        )
        if self._libc.timer_create(time.CLOCK_BOOTTIME, event, ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set(self, lapses_at: float) -> None:
        """Kill this process soon after a moment, by ``now``, and at no other."""
        whole, part = divmod(lapses_at + _GRACE_S, 1.0)
        times = self._TIMES.pack(0, 0, int(whole), int(part * 1e9))
        self._libc.timer_settime(self._timer, self._TIMER_ABSTIME, times, None)


@dataclass(slots=True, repr=False)
class Here:
    """What a worker finds on its own machine."""

    environ: Mapping[str, str]
    #: What the daemon distinguishes digests of keys with.
    salt: str = ""

    def endpoints(self, settings: wire.WorkerSettings) -> dict[str, Endpoint]:
        """Return where providers are reached, each whose key is here. Blocks."""
        found: dict[str, Endpoint] = {}
        for name, endpoint in settings.endpoints.items():
            if (source := settings.keys.get(name)) is None:
                continue  # it needs what stays with the daemon
            key = self._key(source)
            wanted = bool(source.env or source.file)
            if not wanted or (key and key.isascii() and key.isprintable() and " " not in key):
                found[name] = replace(endpoint, api_key=key)
        return found

    def _key(self, source: wire.KeySource) -> str:
        """Return a key, from the daemon's file or else the variable; empty: it is not here."""
        if source.file:
            with contextlib.suppress(NotPossibleError):
                return operator_files.secret("", file=source.file, env="", environ={})[0]
        return self.environ.get(source.env, "").strip()

    def digests(self, endpoints: Mapping[str, Endpoint]) -> dict[str, str]:
        """Return what stands for the keys that are here, by provider."""
        return {name: digest(self.salt, each.api_key) for name, each in endpoints.items()}

    def facts(self, endpoints: Mapping[str, Endpoint]) -> wire.MachineFacts:
        """Return what the daemon is to know of this machine."""
        host, python, keys = socket.gethostname(), code.python(), self.digests(endpoints)
        return wire.MachineFacts(host=host, python=python, at=time.time(), keys=keys)

    def problem(self, hello: wire.Hello, policy: SandboxPolicy) -> str:
        """Return why no task can run here; empty: one can. Blocks."""
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
        if free < _OWN_ROOM:
            return f"its own disk is full: {free >> 20} MB are free in {place}"
        answers = (shared_folders.answer(proof, policy) for proof in hello.proofs)
        return next(filter(None, answers), "")


def digest(salt: str, key: str) -> str:
    """Return what stands for a key where two are compared."""
    return hashlib.sha256(f"{salt} {key}".encode()).hexdigest()
