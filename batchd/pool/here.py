"""What a worker on another machine finds there: keys, the daemon's folders, room on its disk."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from batchd import wire
from batchd.config import operator_files
from batchd.errors import NotPossibleError
from batchd.pool import code, shared_folders
from batchd.records import Endpoint, SandboxPolicy

#: What the sandbox needs of the machine's own disk, in bytes.
_OWN_ROOM = 64 << 20


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
