"""What tests ask of a daemon whose workers are on several machines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from patience import PATIENCE_S
from ports import free_port

from batchd import control
from tests.conftest import CONFIG, NO_REPORT, Spool

#: A lease that a test can wait for.
LEASE_S = 3.0


def configured(
    folder: Path,
    base_url: str,
    model: str = "steps-3",
    *,
    shared: bool = True,
    lease_s: float = LEASE_S,
    more: str = "",
) -> Spool:
    """Return a spool whose workers all join; ``shared``: they have its disk.

    ``more``: of the configuration.
    """
    text = CONFIG.format(base_url=base_url, model=model).replace("processes = 2", "processes = 0")
    lease = f'heartbeat_timeout_s = {lease_s}\nlisten = "127.0.0.1:{free_port()}"\n'
    text = text.replace("drain_s = 2\n", f"drain_s = 2\n{lease}")
    disks = f"[workspace]\nshared = {str(shared).lower()}\n"
    (folder / "config.toml").write_text(f"{NO_REPORT}{text}{disks}{more}")
    return Spool(folder)


def invited(cluster: Spool, machine: str = "127.0.0.1") -> str:
    """Return a ticket."""
    done = cluster.batchd("invite", machine)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def joined(
    cluster: Spool, node: str, line: str = "", *options: str, cache: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker, from its start to whatever end.

    ``cache``: of one that sees nothing of the daemon's folder,
    but an empty one in its place, as on another machine.
    """
    command = cluster.command("worker", "--join", "-", "--node", node, *options)
    if cache is not None:
        hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
        worker = [*command[:3], "worker", "--join", "-", "--node", node, "--cache", str(cache)]
        command = [*hide, str(cluster.folder), *worker]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**cluster.environment, "XDG_CACHE_HOME": str(cluster.folder / "caches")},
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write((line or invited(cluster)) + "\n")
        process.stdin.close()
        process.stdin = None
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


def workers(spool: Spool) -> dict[int, dict[str, Any]]:
    """Return the workers that are up, by their processes."""
    found = control.request(spool.folder / ".batchd", "status")["workers"]
    return {w["pid"]: w for w in found if w["rss"]}


def nodes(spool: Spool) -> dict[str, int]:
    """Return the machines that have workers, with one worker's process on each."""
    return {worker["node"]: pid for pid, worker in workers(spool).items()}


def running(spool: Spool) -> dict[str, str]:
    """Return which node works on which task."""
    found = control.request(spool.folder / ".batchd", "status")["running"]
    return {each["task"]: each["node"] for each in found if each["attempt"]}


def drop(spool: Spool, tasks: int, **more: Any) -> None:
    """Drop a batch ``b``."""
    path = spool.write("b.json", [{"first_prompt": "write it", **more}] * tasks)
    (spool.folder / "inbox").mkdir(exist_ok=True)
    path.rename(spool.folder / "inbox/b.json")


def summary(spool: Spool) -> dict[str, Any]:
    """Return the summary of ``b``, once it is there."""
    spool.eventually((spool.folder / "outbox/b/summary.json").exists)
    return spool.result("b", "summary")


def asked(base_url: str) -> Counter[str]:
    """Return how often the server was asked, by which conversation at which length."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/log") as answer:
        log = msgspec.json.decode(answer.read())
    return Counter(msgspec.json.encode(each).decode() for each in log)


def answering_after(base_url: str, seconds: float) -> None:
    """Have a server of one's own take so long for each answer from now on."""
    change = msgspec.json.encode({"latency_s": seconds})
    urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/control", change).close()


def processes(word: str, of: Spool | None = None) -> list[int]:
    """Return the processes with a word in their command lines.

    ``of``: those alone of workers that joined this spool, since other suites on this machine have
    nodes of the same names. What shows its environment to root alone counts for others.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = word.encode() in (entry / "cmdline").read_bytes().split(b"\0")
            if named and (of is None or _bears(entry, os.fsencode(of.folder))):
                found.append(int(entry.name))
    return found


def _bears(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes()
    except PermissionError:
        return True
