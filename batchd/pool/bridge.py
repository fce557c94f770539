"""The bridge: the one process that talks to Ray.

The daemon starts it, may lose it, and starts it again.

It knows no key, and has no state. What actors answer it unpickles, so it runs where it could not
read the daemon's. Ray ends a driver that has lost its cluster's head for a minute. Its actors are
not detached: they end with it, whatever ends it, and the workers with them. So no worker is ever
left that the daemon does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from batchd import pauses, processes
from batchd.config.sections import is_place, parted
from batchd.pool import bridge_messages
from batchd.pool.actor import Actor
from batchd.pool.bridge_messages import (
    MOST_DATA,
    NOTICE,
    WINDOW,
    ClusterAnswers,
    Connected,
    Down,
    FindRoom,
    NotConnected,
    Read,
    RoomFound,
    StartWorker,
    StopWorker,
    Taken,
    Up,
    WorkerStopped,
)

#: How often nodes are looked at, in seconds.
_NODES_S = 2.0
#: How long a head may take to answer at all, in seconds.
_REACH_S = 5.0
#: For how long an actor is asked for what its worker says, in seconds.
_WAIT_S = 10.0
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


class Place:
    """One worker, as the bridge carries its bytes."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        #: What the daemon sends it.
        self.down: asyncio.Queue[bytes] = asyncio.Queue()
        #: Bytes that the daemon has read, and what tells of more.
        self.read = 0
        self.reads = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []


class Bridge:
    """Carries the daemon's orders out, and bytes both ways."""

    def __init__(self, ray: Any, out: int) -> None:
        """``ray``: the module, connected. ``out``: where news go."""
        self._ray = ray
        self._out = out
        self._places: dict[int, Place] = {}
        #: Whether the cluster is known to want a token.
        self._guarded = False

    async def serve(self) -> None:
        """Serve until the daemon is gone, or the cluster may not be used."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2 * MOST_DATA)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._say(first := await asyncio.to_thread(self._look))
        if isinstance(first, NotConnected):
            return
        self._say(Connected())
        serving = {asyncio.create_task(each) for each in (self._obey(reader), self._watch())}
        ended, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        for each in ended:
            each.result()

    async def _obey(self, orders: asyncio.StreamReader) -> None:
        """Carry out what the daemon orders, until it is gone."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                self._carry_out(await bridge_messages.order(orders))

    def _say(self, news: bridge_messages.News) -> None:
        left = memoryview(bridge_messages.frame(news))
        while left:
            left = left[os.write(self._out, left) :]

    def _carry_out(self, order: bridge_messages.Order) -> None:
        place = self._places.get(order.badge)
        match order:
            case FindRoom():
                self._find(order)
            case StopWorker(badge=badge):
                self._stop(badge, "it was ended")
            case _ if place is None:
                return  # it has stopped meanwhile
            case StartWorker(badge=badge, key_file=key_file):
                self._run(place, badge, self._start(place, badge, key_file))
            case Down(data=data):
                place.down.put_nowait(data)
            case Read(size=size):
                place.read += size
                place.reads.set()

    def _find(self, order: FindRoom) -> None:
        options: dict[str, Any] = {
            "num_cpus": order.cpus,
            "memory": order.memory_bytes,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            # For both ways, and where it is.
            "max_concurrency": 3,
        }
        if order.avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(order.avoid)})"}
        place = Place(self._ray.remote(Actor).options(**options).remote())
        self._places[order.badge] = place
        self._run(place, order.badge, self._settle(place, order.badge))

    def _run(self, place: Place, badge: int, work: Coroutine[Any, Any, None]) -> None:
        """Run what concerns one worker: an error of Ray's is its end."""

        async def run() -> None:
            try:
                await work
            except self._ray.exceptions.RayError as error:
                self._stop(badge, _first_line(getattr(error, "cause", None) or error))

        place.tasks.append(asyncio.create_task(run()))

    async def _settle(self, place: Place, badge: int) -> None:
        self._say(RoomFound(badge=badge, node_id=await place.actor.where.remote()))

    async def _start(self, place: Place, badge: int, key_file: str) -> None:
        await place.actor.start.remote(key_file)
        self._run(place, badge, self._carry_down(place, badge))
        self._run(place, badge, self._carry_up(place, badge))

    async def _carry_down(self, place: Place, badge: int) -> None:
        written = noticed = 0
        while True:
            data = bytearray(await place.down.get())
            while not place.down.empty() and len(data) < MOST_DATA:
                data += place.down.get_nowait()
            written = await place.actor.down.remote(written, bytes(data))
            if written - noticed >= NOTICE:
                self._say(Taken(badge, written - noticed))
                noticed = written

    async def _carry_up(self, place: Place, badge: int) -> None:
        said = 0
        while True:
            while said - place.read >= WINDOW:
                place.reads.clear()
                await place.reads.wait()
            data, ended = await place.actor.up.remote(said, MOST_DATA, _WAIT_S)
            if data:
                self._say(Up(badge, data))
                said += len(data)
            elif ended:
                self._stop(badge, ended)
                return

    def _stop(self, badge: int, cause: str) -> None:
        place = self._places.pop(badge, None)
        if place is not None:
            self._ray.kill(place.actor)
            self._say(WorkerStopped(badge, cause))
            for task in place.tasks:
                if task is not asyncio.current_task():
                    task.cancel()

    async def _watch(self) -> None:
        """Report that the cluster answers, for as long as it may be used."""
        while True:
            await pauses.pause(_NODES_S)
            self._say(news := await asyncio.to_thread(self._look))
            if isinstance(news, NotConnected):
                return

    def _look(self) -> ClusterAnswers | NotConnected:
        """Return that the cluster answers, or may not be used. Blocks."""
        draining = tuple(sorted(self._ray._private.state.state.get_draining_nodes()))
        alive = sum(node["Alive"] for node in self._ray.nodes())
        if alive > 1 and not self._guarded:
            # One node alone may be this machine, reached from nowhere else;
            # so it is asked as soon as there are more.
            if why := _unguarded(self._ray.get_runtime_context().gcs_address):
                why = f"the Ray cluster has {alive} nodes, and {why}"
                return NotConnected(why, "start all of its nodes with RAY_AUTH_MODE=token")
            self._guarded = True
        return ClusterAnswers(draining)


def main() -> int:
    """Join the cluster at this address, and serve the daemon on standard input and output."""
    address = sys.argv[1]
    out = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no news
    try:
        import ray
    except ImportError:
        why = "[pool] engine is ray, which is not installed"
        return _not_connected(out, why, "install `batchd[ray]`")
    try:
        if is_place(address):
            # Ray itself would try for minutes.
            socket.create_connection(parted(address), _REACH_S).close()
            if _asked(address, os.environ) == _WANTS_TOKEN:  # nor does Ray say so soon
                why = f"the Ray cluster at {address} expects another token"
                return _not_connected(out, why, "put its token into the file of [ray] token_file")
        ray.init(address=address, log_to_driver=False, logging_level="error", namespace="batchd")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = f"the Ray cluster at {address} cannot be reached: {_first_line(error)}"
        return _not_connected(out, why, "check that it runs; batchd tries again by itself")
    asyncio.run(Bridge(ray, out).serve())
    ray.shutdown()
    return 0


def _not_connected(out: int, why: str, fix: str) -> int:
    """Say why there is no cluster, and return the exit code."""
    os.write(out, bridge_messages.frame(NotConnected(why, fix)))
    return 3


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
