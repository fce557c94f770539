"""Constraints of ``[pool]`` about workers of other machines, which its types do not show."""

from __future__ import annotations

import re
from collections.abc import Iterator

from batchd.config.sections import PoolSection, RaySection, SandboxSection, WorkspaceSection
from batchd.errors import Problem
from batchd.records import needs

#: An IPv6 address stands in brackets.
_PLACE = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:\[\]/]+):([0-9]{1,5})")
_MOST_PORT = 65535
#: One message carries it.
_MOST_PATCH = 128 << 20


def problems(
    pool: PoolSection, ray: RaySection, workspace: WorkspaceSection, sandbox: SandboxSection
) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """Find addresses that are none, and a pool in which nothing could run."""
    for key in ("listen", "advertise"):
        place = getattr(pool, key)
        found = _PLACE.fullmatch(place)
        if place and not (found and 0 < int(found[2]) <= _MOST_PORT and _named(found[1])):
            yield ("pool", key), Problem("", 'it must be "HOST:PORT", as in "0.0.0.0:7443"')
    if pool.advertise and not pool.listen:
        yield (
            ("pool", "advertise"),
            Problem("", "[pool] listen is not set, so no worker can join"),
        )
    if pool.engine == "ray" and not pool.processes:
        yield (
            ("pool", "processes"),
            Problem("", "the Ray cluster has room for no worker", "set it to 1 or more"),
        )
    yield from _having(pool)
    if ray.min_processes > pool.processes:
        why = f"it is more than [pool] processes, {pool.processes}"
        yield ("ray", "min_processes"), Problem("", why)
    if pool.listen and workspace.max_patch_bytes > _MOST_PATCH:
        why = f"a patch from another machine has at most {_MOST_PATCH} bytes"
        yield ("workspace", "max_patch_bytes"), Problem("", why)
    if pool.engine == "ray" and not pool.listen:
        why = "workers of a Ray cluster join where the daemon listens"
        yield ("pool", "engine"), Problem("", why, "set [pool] listen to HOST:PORT")
    if not pool.processes and not pool.listen:
        why = "without processes, and without [pool] listen, no task could run"
        yield ("pool", "processes"), Problem("", why, "set one of them")
    if pool.listen and not workspace.shared and sandbox.backend == "none":
        why = "without a sandbox, nothing confines what directories bring from other machines"
        fix = 'set [sandbox] backend = "bwrap", or [workspace] shared = true where all machines have them'
        yield ("pool", "listen"), Problem("", why, fix)


def _having(pool: PoolSection) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """Find what is wrong with what this machine is said to have."""
    for why in needs.wrong(pool.gpus, pool.labels):
        yield ("pool", "labels"), Problem("", why)
    if pool.engine == "ray" and (pool.gpus or pool.labels):
        why = "no task runs on this machine: the nodes of the Ray cluster say what they have"
        yield ("pool", "gpus" if pool.gpus else "labels"), Problem("", why, "leave it out")


def _named(host: str) -> bool:
    """Whether a host can be asked for: no part of its name is empty, or too long."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
