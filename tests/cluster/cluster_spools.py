"""Spools whose workers run on a Ray cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.conftest import CONFIG, NO_REPORT, Spool

#: Of every cluster here.
TOKEN = "0" * 64
#: Of their workers.
LEASE_S = 4.0
_POOL = """\
engine = "ray"
processes = 6
heartbeat_timeout_s = {lease}
"""
_MORE = """\
[ray]
address = "{address}"
cpus_per_process = {cpus}
token_file = "{token}"
"""


def on_cluster(
    folder: Path, base_url: str, address: str, *, token: str = TOKEN, cpus: float = 1
) -> Spool:
    """Return a spool whose workers run on the cluster with this head."""
    file = folder / "ray-token"
    file.write_text(token)
    pool = _POOL.format(lease=LEASE_S)
    text = CONFIG.format(base_url=base_url, model="steps-3").replace("processes = 2\n", pool)
    text += _MORE.format(address=address, cpus=cpus, token=file if token else "")
    (folder / "config.toml").write_text(NO_REPORT + text)
    return Spool(folder)


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += below.get(each, ())
    return found
