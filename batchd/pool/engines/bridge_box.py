"""The box that the bridge to Ray runs in: the host's network, Ray's own folders, our code; not the
state directory, no home, no key but the cluster's token.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import batchd
from batchd import processes
from batchd.errors import NotPossibleError
from batchd.sandbox import shown

#: Where a node keeps its sockets and its objects, which the bridge uses as any driver does.
_RAYS = ("/tmp/ray", "/dev/shm")  # noqa: S108 (Ray's own)
#: Of this process's variables, what the bridge gets.
_VARIABLES = ("PATH", "LANG", "TZ")
_OWN_FILE = "~/.ray/auth_token"
_PASSED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


def command(address: str, token_file: str) -> list[str]:
    """Return the command line of a bridge to a cluster. Raises ``NotPossibleError``."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NotPossibleError("bwrap is missing: install bubblewrap")
    inside = processes.module("batchd.pool.engines.bridge", address)
    return [bwrap, *_view(token_file), "--", *inside]


def environment(token_file: str) -> dict[str, str]:
    """Return a bridge's variables."""
    known = {name: os.environ[name] for name in (*_VARIABLES, *_PASSED) if name in os.environ}
    known |= {"HOME": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}  # noqa: S108 (an empty one)
    if token := _token(token_file):
        known |= {"RAY_AUTH_TOKEN_PATH": token}
    if token_file:
        known |= {"RAY_AUTH_MODE": "token"}
        known.pop("RAY_AUTH_TOKEN", None)
    return known


def _token(token_file: str) -> str:
    """Return the path of the cluster's token; empty: there is none."""
    said = token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser(_OWN_FILE)
    return said if Path(said).is_file() else ""


def _view(token_file: str) -> Iterator[str]:
    # Not its own processes: a node looks for its driver by number.
    yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL")
    yield from ("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc")
    if Path("/etc/batchd").is_dir():
        yield from ("--tmpfs", "/etc/batchd")
    for name in shown.LEADING:
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.exists():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--dev", "/dev", "--ro-bind", "/proc", "/proc", "--ro-bind", "/sys", "/sys")
    yield from ("--tmpfs", "/tmp")  # noqa: S108 (its own)
    for rays in _RAYS:
        yield from ("--bind-try", rays, rays)
    # Not all of where modules are looked for: a checkout may have the state directory in it.
    sites = [each for each in sys.path if Path(each).name in {"site-packages", "dist-packages"}]
    packages = (sys.prefix, sys.base_prefix, *sites, str(Path(batchd.__file__).parent))
    for place in dict.fromkeys(each for each in packages if each and Path(each).exists()):
        yield from ("--ro-bind", place, place)
    if token := _token(token_file):
        yield from ("--ro-bind", token, token)
