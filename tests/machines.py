"""Machines for tests: each is a process tree of its own that shares the disks, reached over pipes
as `ssh` does it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import CONFIG, NO_REPORT, Spool

#: A lease that a test can wait for.
LEASE_S = 3.0
#: What reaches a worker: two pipes and, in a session of its own as on another machine, a script in
#: namespaces of its own.
_REACH = 'cat | setsid unshare --uts --mount sh -c "$0" "$@" | cat'
_WORKER = 'hostname "$0" && {before}exec "$1" -X "of=$2" -m batchd "$3"'


def command(spool: Path, name: str, before: str = "true") -> list[str]:
    """Return what reaches a worker of a spool on a machine of this name.

    ``before``: what a shell does there first.
    """
    script = _WORKER.format(before=f"{before} && ")
    return ["sh", "-c", _REACH, script, name, sys.executable, str(spool), "worker"]


def spool_with(
    folder: Path,
    base_url: str,
    *names: str,
    processes: int = 0,
    model: str = "steps-3",
    commands: Sequence[tuple[str, Sequence[str]]] = (),
    more: str = "",
) -> Spool:
    """Return a spool with a worker on each of these machines, and on those of ``commands``.

    ``processes``: workers here. ``more``: of the configuration.
    """
    all_of_them = [*((name, command(folder, name)) for name in names), *commands]
    tables = (f"{{name = {json.dumps(n)}, command = {json.dumps(c)}}}" for n, c in all_of_them)
    text = CONFIG.format(base_url=base_url, model=model)
    text = text.replace("processes = 2", f"processes = {processes}")
    pool = f"heartbeat_timeout_s = {LEASE_S}\nmachines = [{', '.join(tables)}]\n"
    text = text.replace("drain_s = 2\n", f"drain_s = 2\n{pool}")
    (folder / "config.toml").write_text(f"{NO_REPORT}{text}{more}")
    return Spool(folder)


def processes_there(spool: Spool) -> list[int]:
    """Return the parents and workers of a spool that live on machines."""
    mark = f"of={spool.folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    """Return the process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def clients(spool: Spool) -> list[int]:
    """Return what reaches the workers: the shells, and what they carry bytes with."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if _REACH.encode() in words and os.fsencode(spool.folder) in words:
                found.append(int(entry.name))
        except OSError:
            continue
    carriers = Path("/proc").glob("[0-9]*")
    for entry in carriers:
        try:
            if (entry / "comm").read_text() == "cat\n" and parent_of(int(entry.name)) in found:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def strike(pids: Sequence[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes that are there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
