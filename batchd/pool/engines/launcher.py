"""The launcher: the one process that talks to Ray.

The daemon starts it, may lose it, and starts it again.

Ray ends a driver that has lost its cluster's head for a minute. Its actors are not detached: they
end with it, whatever ends it, and the workers with them.
So no worker is ever left that the daemon does not know.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from batchd import processes
from batchd.pool.engines import launcher_messages
from batchd.pool.engines.launcher_messages import (
    ClusterSize,
    Connected,
    FindRoom,
    NodeSize,
    NotConnected,
    RoomFound,
    StartWorker,
    StopWorker,
    WorkerStopped,
)
from batchd.pool.engines.nurse import Nurse
from batchd.pool.joining import ticket
from batchd.records import Has
from batchd.records.tasks import RESERVED

#: How often actors and nodes are looked at, in seconds.
_LOOK_S, _NODES_S = 0.1, 2.0
#: How long a head may take to answer at all, in seconds.
_REACH_S = 5.0
#: What distinguishes nodes of one host name: so much of their ids.
_NODE_ID_CHARS = 6
#: Of a custom resource: no worker is kept from a node for another one that has the same label.
_SOME = 0.0001
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: How the program ends that asks without a token: 0 where it is answered.
_WANTS_TOKEN = 7
_ASK_S = 15.0
_ASK = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import RayError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
except RayError as error:
    sys.exit({_WANTS_TOKEN} if "Unauthenticated" in str(error) or "AuthToken" in str(error) else str(error))
"""


class Launcher:
    """Carries the daemon's orders out."""

    def __init__(self, ray: Any, out: int) -> None:
        """``ray``: the module, connected. ``out``: where news go."""
        self._ray = ray
        self._out = out
        #: The actor of each badge.
        self._actors: dict[int, Any] = {}
        #: What each badge is asked: where it is, or how its worker ended.
        self._asked: dict[Any, tuple[int, str]] = {}
        #: Whether the cluster is known to want a token.
        self._guarded = False

    def serve(self) -> None:
        """Serve until the daemon is gone, or the cluster may not be used."""
        if self._look():
            self._say(Connected())
        else:
            return
        buffer, looked_at = b"", 0.0
        while True:
            ready, _, _ = select.select([0], [], [], _LOOK_S)
            if ready:
                if not (read := os.read(0, 1 << 16)):
                    return
                *whole, buffer = (buffer + read).split(b"\n")
                for each in whole:
                    self._carry_out(launcher_messages.message(each))
            self._hear()
            if time.monotonic() - looked_at > _NODES_S:
                looked_at = time.monotonic()
                if not self._look():
                    return

    def _say(self, news: launcher_messages.News) -> None:
        os.write(self._out, launcher_messages.line(news))

    def _carry_out(self, order: launcher_messages.Order) -> None:
        match order:
            case FindRoom():
                self._place(order)
            case StartWorker(badge=badge, ticket=ticket, node=node, has=has):
                if actor := self._actors.get(badge):
                    answer = actor.run.remote(ticket, node, has.gpus, has.labels)
                    self._asked[answer] = badge, "run"
            case StopWorker(badge=badge):
                if actor := self._actors.pop(badge, None):
                    self._ray.kill(actor)
                self._say(WorkerStopped(badge, "it was ended"))

    def _place(self, order: FindRoom) -> None:
        options: dict[str, Any] = {
            "num_cpus": order.cpus,
            "memory": order.memory_bytes,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
        }
        if order.needs.gpu:
            options["num_gpus"] = order.needs.gpu
        if order.needs.label:
            options["resources"] = {order.needs.label: _SOME}
        if order.avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(order.avoid)})"}
        actor = self._ray.remote(Nurse).options(**options).remote()
        self._actors[order.badge] = actor
        self._asked[actor.where.remote(order.daemon)] = order.badge, "where"

    def _hear(self) -> None:
        """Take the answers of actors, and their ends."""
        if not self._asked:
            return
        done, _ = self._ray.wait([*self._asked], num_returns=len(self._asked), timeout=0)
        for answer in done:
            badge, question = self._asked.pop(answer)
            if badge not in self._actors:
                continue
            try:
                found = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                del self._actors[badge]
                self._say(WorkerStopped(badge, _first_line(getattr(error, "cause", None) or error)))
                continue
            if question == "run":
                self._ray.kill(self._actors.pop(badge))
                self._say(WorkerStopped(badge, found))
            else:
                node_id, addresses, host = found
                name = f"{host}-{node_id[:_NODE_ID_CHARS]}"
                self._say(RoomFound(badge=badge, node_id=node_id, node=name, addresses=addresses))

    def _look(self) -> bool:
        """Report how large the cluster is; return whether it may be used."""
        draining = tuple(sorted(self._ray._private.state.state.get_draining_nodes()))
        alive = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        nodes = [resources for node, resources in alive.items() if node not in draining]
        if len(alive) > 1 and not self._guarded:
            # One node alone may be this machine, reached from nowhere else;
            # so it is asked as soon as there are more.
            if why := _unguarded(self._ray.get_runtime_context().gcs_address):
                why = f"the Ray cluster has {len(alive)} nodes, and {why}"
                self._say(NotConnected(why, "start all of its nodes with RAY_AUTH_MODE=token"))
                return False
            self._guarded = True
        self._say(ClusterSize(nodes=tuple(map(_size, nodes)), draining=draining))
        return True


def _size(resources: Mapping[str, float]) -> NodeSize:
    """Return how large a node is, by its resources in Ray's words."""
    custom = (name for name in resources if name not in RESERVED and ":" not in name)
    has = Has(int(resources.get("GPU", 0.0)), tuple(sorted(custom)))
    return NodeSize(resources.get("CPU", 0.0), int(resources.get("memory", 0.0)), has)


def main(address: str) -> int:
    """Join a cluster, and serve the daemon on standard input and output."""
    out = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no news
    try:
        import ray
    except ImportError:
        why = "[pool] engine is ray, which is not installed"
        return _not_connected(out, why, "install `batchd[ray]`")
    try:
        if place := ticket.address(address):
            # Ray itself would try for minutes.
            socket.create_connection(place, _REACH_S).close()
            if not _takes_token(address):
                why = f"the Ray cluster at {address} expects another token"
                return _not_connected(out, why, "put its token into the file of [ray] token_file")
        ray.init(address=address, log_to_driver=False, logging_level="error", namespace="batchd")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = f"the Ray cluster at {address} cannot be reached: {_first_line(error)}"
        return _not_connected(out, why, "check that it runs; batchd tries again by itself")
    Launcher(ray, out).serve()
    ray.shutdown()
    return 0


def _not_connected(out: int, why: str, fix: str) -> int:
    """Say why there is no cluster, and return the exit code."""
    os.write(out, launcher_messages.line(NotConnected(why, fix)))
    return 3


def _takes_token(address: str) -> bool:
    """Whether a cluster takes the token that this process has, if it wants any.

    Ray itself would try for long.
    """
    return _asked(address, os.environ) != _WANTS_TOKEN


def _unguarded(address: str) -> str:
    """Return that a cluster answers a process without its token,
    or that this cannot be seen; empty: it does not.
    """
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_")}
    surroundings |= {"RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}
    code = _asked(address, surroundings)
    if code == _WANTS_TOKEN:
        return ""
    if code == 0:
        return "takes orders from any process that reaches it"
    return "batchd cannot see whether it needs a token"


def _asked(address: str, surroundings: Mapping[str, str]) -> int | None:
    """Return how a process with these variables ends that asks a cluster something;
    None: not in time.
    """
    try:
        done = subprocess.run(
            processes.program(_ASK, address),
            env=surroundings,
            capture_output=True,
            timeout=_ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _first_line(error: BaseException) -> str:
    """Return what an error says, without the trace and the colours that Ray adds."""
    lines: Iterator[str] = (each.strip() for each in _COLOUR.sub("", str(error)).splitlines())
    return next(filter(None, lines), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
