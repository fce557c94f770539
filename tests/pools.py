"""What tests ask of a daemon whose workers are on several machines."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from batchd import control
from tests.conftest import Spool


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
