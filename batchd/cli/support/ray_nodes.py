"""A Ray cluster of two nodes on this machine, for the demo."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import NotPossibleError

_PATIENCE_S = 60.0
#: Of each node: little is put there.
_NODE = ("--num-cpus", "2", "--object-store-memory", str(80 << 20), "--disable-usage-stats")
_CONFIG = """
[pool]
engine = "ray"
listen = "127.0.0.1:{port}"

[ray]
address = "{address}"
token_file = "{token}"

[workspace]
shared = true
"""


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """The cluster, and where a daemon may listen for its workers."""

    address: str
    token: Path
    listen: int

    @property
    def config(self) -> str:
        """What config.toml says of it."""
        return _CONFIG.format(address=self.address, token=self.token, port=self.listen)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Run a head and another node; all of it ends with the block. Raises ``NotPossibleError``."""
    if importlib.util.find_spec("ray") is None:
        raise NotPossibleError("Ray is not installed: install `batchd[ray]`")
    token = folder / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), "ascii")
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, listen = _free_ports()
    address = f"127.0.0.1:{port}"
    head = ("--head", "--port", str(port), "--include-dashboard", "false")
    with (folder / "ray.log").open("wb") as log, _node(head, environ, log.fileno()):
        _until_open(port, folder)
        with _node(("--address", address), environ, log.fileno()):
            yield TwoNodes(address, token, listen)


@contextlib.contextmanager
def _node(options: tuple[str, ...], environ: Mapping[str, str], log: int) -> Iterator[None]:
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", *_NODE]
    # Ray's own range of ports for workers would be two nodes' at once.
    command += ["--min-worker-port", "0", "--max-worker-port", "0", *options]
    node = subprocess.Popen(command, stdout=log, stderr=log, env=environ, process_group=0)
    try:
        yield
    finally:
        node.terminate()  # it ends what it has started
        try:
            node.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def _until_open(port: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        if time.monotonic() > deadline:
            raise NotPossibleError(f"Ray does not start; its log is {folder / 'ray.log'}")
        time.sleep(0.1)


def _free_ports() -> tuple[int, int]:
    """Return two ports that are free now."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        return one.getsockname()[1], other.getsockname()[1]
