"""The code that a process runs:
an upgrade in place changes the files under a daemon, whose workers must be of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from batchd.errors import NotPossibleError
from batchd.version import __version__

PACKAGE = Path(__file__).parents[1]
#: The endings of files that run.
_CODE = {".py", ".sh", ".sql"}
#: What helps where the files on the disk are not those that the daemon runs.
RESTART = "restart the daemon; what waits goes on then"


@cache
def fingerprint() -> str:
    """Return what distinguishes the package's files,
    as they are when a process first asks, from others.

    The fork server asks as it loads them, so that its workers answer
    for what they run, not for what lies there now.
    """
    return _as_it_lies()


def exchanged() -> bool:
    """Whether other files lie there by now: what is started from them would not fit.

    Raises ``OSError``.
    """
    return _as_it_lies() != fingerprint()


async def insist(program: str) -> None:
    """Return where a program of ours that is started now would fit this daemon.

    ``program``: what it does. Raises ``NotPossibleError``, and ``OSError``.
    """
    if await asyncio.to_thread(exchanged):
        what = f"the program that {program} has another version than this daemon"
        raise NotPossibleError(f"{what}, batchd {__version__}: {RESTART}")


def python() -> str:
    """Return which Python this is, as far as a daemon and its workers must have the same."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@cache
def content() -> str:
    """Return what distinguishes the package by what is in its files,
    wherever it lies: the same on every machine.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in _CODE):
        inside = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(inside)}\n".encode() + inside)
    return digest.hexdigest()


def _as_it_lies() -> str:
    return hashlib.sha256("\n".join(sorted(_files(PACKAGE))).encode()).hexdigest()


def _files(folder: Path | os.DirEntry[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry)
            elif os.path.splitext(entry.name)[1] in _CODE:
                found = entry.stat()
                yield f"{entry.path} {found.st_size} {found.st_mtime_ns}"
