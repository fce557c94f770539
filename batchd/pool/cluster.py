"""A Ray cluster: as many workers as there is work for, each on a node with room for it.

Ray finds the room, and carries sealed bytes; one process of ours, the bridge, talks to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchd import processes
from batchd.config import Config
from batchd.errors import NotPossibleError
from batchd.log import Action
from batchd.pauses import doubled
from batchd.pool import bridge_messages, code
from batchd.pool.bridge_messages import (
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
from batchd.pool.remote import RemoteWorker, Trouble, troubled
from batchd.pool.sealed_stream import KEY_BYTES, SealedStream
from batchd.pool.supervisor import Supervisor
from batchd.sandbox import shown

#: How often the workers are held against the work there is, in seconds.
_LOOK_S = 0.5
#: How long the cluster may take to answer.
_CONNECT_S = 90.0
#: After so long without a word of it that is reported, and then the bridge is started again.
_LATE_S, _SILENT_S = 8.0, 30.0
#: How long it may take to find room before that is reported.
_ROOM_S = 30.0
_NO_ROOM_FIX = (
    "wait for what else runs there, add a node, or lower [ray] cpus_per_process and"
    " memory_mb_per_process"
)
#: A worker without a task for so long is ended where there are more than needed.
_IDLE_S = 60.0
#: The pauses after workers that never came up, and after bridges that ended.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
#: For how long a node is avoided on which no task can run.
_AVOID_S = 600.0
_AGAIN = "wait: batchd tries again by itself"
_READ = 1 << 16
#: What distinguishes nodes of one host name: so much of their ids.
_NODE_ID_CHARS = 6
#: Where a node keeps its sockets and its objects, which the bridge uses as any driver does.
_RAYS = ("/tmp/ray", "/dev/shm")  # noqa: S108 (Ray's own)
#: Of this process's variables, what the bridge gets.
_VARIABLES = ("PATH", "LANG", "TZ")
_OWN_FILE = "~/.ray/auth_token"
_PASSED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@dataclass(slots=True, eq=False)
class _Post:
    """One worker, from the order to find room for it to its end."""

    asked_at: float
    #: The nodes that are not looked at for room.
    avoid: tuple[str, ...] = ()
    #: None: there is no room for it yet.
    worker: RayWorker | None = None
    ending: bool = False


class Cluster:
    """Keeps the workers. ``run`` it beside the pool."""

    def __init__(
        self, config: Callable[[], Config], pool: Supervisor, work: Callable[[], int]
    ) -> None:
        """``config`` returns that of today.

        ``work`` returns how many tasks are at work, or could be.
        """
        self._config = config
        self._pool = pool
        self._work = work
        self._posts: dict[int, _Post] = {}
        self._badge = 0
        self._bridge: asyncio.subprocess.Process | None = None
        #: Whether it has reached the cluster.
        self._connected = False
        #: By node id: until when it is avoided.
        self._avoided: dict[str, float] = {}
        #: Workers in a row that did not come up, and when the next one may be asked for.
        self._failures = 0
        self._not_before = 0.0
        #: Why there are no workers, with the fix, and since when.
        self.trouble: Trouble | None = None

    async def run(self) -> None:
        """Keep a bridge, and through it the workers, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            begun = time.monotonic()
            try:
                await self._cross()
            except (OSError, NotPossibleError) as error:
                self.troubled(f"the bridge to Ray cannot be started: {error}", _AGAIN)
            finally:
                # Its workers have ended with it.
                for post in self._posts.values():
                    if post.worker is not None:
                        post.worker.stopped("the bridge to Ray has ended")
                self._posts.clear()
            if time.monotonic() - begun > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _cross(self) -> None:
        """Run one bridge to its end."""
        ray = self._config().ray
        bridge = await asyncio.create_subprocess_exec(
            *_command(ray.address, ray.token_file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # Ray's own lines; what matters comes as news
            env=_environment(ray.token_file),
            process_group=0,
        )
        self._bridge = bridge
        assert bridge.stdout is not None, "a pipe was asked for"
        try:
            async with asyncio.timeout(_CONNECT_S):
                while not self._connected:
                    self._take(await bridge_messages.news(bridge.stdout))
            await self._serve(bridge.stdout)
        except TimeoutError:
            self.troubled(self._unanswered(), _AGAIN)
        except EOFError:
            if self._connected or self.trouble is None:
                self.troubled("the bridge to Ray has ended", _AGAIN)
        except (msgspec.MsgspecError, ValueError) as error:
            self.troubled(f"the bridge to Ray sends what batchd cannot read: {error}", _AGAIN)
        finally:
            self._bridge, self._connected = None, False
            with contextlib.suppress(ProcessLookupError):
                bridge.kill()
            await bridge.wait()

    async def _serve(self, said: asyncio.StreamReader) -> None:
        """Keep the workers, as long as the cluster answers. Raises ``EOFError``."""
        heard_at = time.monotonic()

        async def listen() -> None:
            nonlocal heard_at
            while True:
                self._take(await bridge_messages.news(said))
                heard_at = time.monotonic()

        listening = asyncio.create_task(listen())
        late = False
        try:
            while not listening.done() and (silent_s := time.monotonic() - heard_at) < _SILENT_S:
                if silent_s > _LATE_S:
                    self.troubled(self._unanswered(), _AGAIN)
                    late = True
                elif late:
                    self.trouble, late = None, False
                self._fit()
                await asyncio.wait({listening}, timeout=_LOOK_S)
            if listening.done():
                await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def _unanswered(self) -> str:
        return f"the Ray cluster at {self._config().ray.address} does not answer any more"

    def _take(self, news: bridge_messages.News) -> None:
        match news:
            case Connected():
                self._connected, self.trouble = True, None
            case NotConnected(message=message, fix=fix):
                self._connected = False
                self.troubled(message, fix)
                raise EOFError
            case ClusterAnswers(draining=draining):
                # Workers on nodes that Ray drains give their tasks back before the nodes are gone.
                for number, each in self._posts.items():
                    if each.worker is not None and each.worker.node_id in draining:
                        self._dismiss(number, each)
            case Up(badge=badge, data=data):
                if (worker := self._worker(badge)) is not None:
                    worker.came(data)
            case Taken(badge=badge, size=size):
                if (worker := self._worker(badge)) is not None:
                    worker.taken(size)
            case RoomFound(badge=badge, node_id=node_id):
                post = self._posts.get(badge)
                if post is not None and not post.ending:
                    worker = RayWorker(self._pool, self, badge, node_id)
                    post.worker = worker
                    self._pool.admit(worker)
            case WorkerStopped(badge=badge, cause=cause):
                post = self._posts.pop(badge, None)
                if post is not None and post.worker is not None:
                    post.worker.stopped(cause)
                elif post is not None and not post.ending:
                    self.failed("", cause, "")

    def _worker(self, badge: int) -> RayWorker | None:
        post = self._posts.get(badge)
        return post.worker if post else None

    def failed(self, node_id: str, cause: str, fix: str) -> None:
        """Note that a worker did not come up; ``fix``: what helps where no task can run there."""
        if fix:
            self._avoided[node_id] = time.monotonic() + _AVOID_S
        self._failures += 1
        pause_s = doubled(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, self._failures)
        self._not_before = time.monotonic() + pause_s
        where = f" on node {node_id[:_NODE_ID_CHARS]}" if node_id else ""
        self.troubled(f"a worker did not come up{where}: {cause}", fix or _AGAIN)

    def came_up(self) -> None:
        """Note that a worker did."""
        self._failures, self.trouble = 0, None

    def _fit(self) -> None:
        """Ask for workers, or end some."""
        now, pool, ray = time.monotonic(), self._config().pool, self._config().ray
        kept = {badge: post for badge, post in self._posts.items() if not post.ending}
        work = -(-self._work() // pool.agents_per_process)
        wanted = max(0, min(pool.processes, max(ray.min_processes, work)))
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        avoid = tuple(sorted(self._avoided))
        if len(kept) > wanted:
            self._shrink(kept, len(kept) - wanted)
        elif now >= self._not_before:
            for _ in range(wanted - len(kept)):
                self._badge += 1
                self._posts[self._badge] = _Post(now, avoid)
                self.order(
                    FindRoom(
                        badge=self._badge,
                        cpus=ray.cpus_per_process,
                        memory_bytes=ray.memory_mb_per_process << 20,
                        avoid=avoid,
                    )
                )
        pending = {badge: post for badge, post in kept.items() if post.worker is None}
        for badge, post in pending.items():
            if post.avoid != avoid:  # Ray would hold to what it was asked first
                self._dismiss(badge, post)
        if not wanted and not kept:
            self.trouble = None  # whatever it was, nothing waits for it
        if len(pending) == len(kept) and any(
            now - post.asked_at > _ROOM_S for post in pending.values()
        ):
            takes = f"{ray.cpus_per_process:g} CPUs and {ray.memory_mb_per_process:,} MB"
            no_room = f"no node of the Ray cluster has room for a worker, which takes {takes}"
            self.troubled(no_room, _NO_ROOM_FIX)

    def _shrink(self, kept: Mapping[int, _Post], surplus: int) -> None:
        """End workers that are not needed: first those for which there is no room yet,
        then those that are idle.
        """
        now = asyncio.get_running_loop().time()
        idle = sorted(
            (
                worker
                for worker in self._pool.workers
                if isinstance(worker, RayWorker)
                and worker.greeted
                and not worker.tasks
                and now - worker.idle_since > _IDLE_S
            ),
            key=lambda worker: worker.idle_since,
        )
        chosen = [badge for badge, post in kept.items() if post.worker is None]
        chosen += [worker.badge for worker in idle]
        for badge in [badge for badge in chosen if badge in kept][:surplus]:
            self._dismiss(badge, kept[badge])

    def _dismiss(self, badge: int, post: _Post) -> None:
        """End a worker once it has given back what it works on, or the search for its room."""
        if post.ending:
            return
        post.ending = True
        if post.worker in self._pool.workers and post.worker.greeted:
            self._pool.retire(post.worker)
        else:
            self.order(StopWorker(badge))

    def order(self, order: bridge_messages.Order) -> None:
        """Send the bridge an order; without one it is dropped, for all workers have ended."""
        if self._bridge is not None and self._bridge.stdin is not None:
            self._bridge.stdin.write(bridge_messages.frame(order))

    def troubled(self, cause: str, fix: str) -> None:
        """Note why there are no workers."""
        self.trouble = troubled(self.trouble, f"{cause}: {fix}", Action.CLUSTER_TROUBLE)


class RayWorker(RemoteWorker):
    """One worker on a node of the cluster, and the sealed stream to it."""

    def __init__(self, pool: Supervisor, cluster: Cluster, badge: int, node_id: str) -> None:
        super().__init__(pool.received, node_id[:_NODE_ID_CHARS], pool.remote_terms)
        self.badge = badge
        self.node_id = node_id
        self._cluster = cluster
        self._coming: asyncio.Queue[bytes] = asyncio.Queue()
        #: Bytes that are under way to it, and what tells of fewer.
        self._under_way = 0
        self._fewer = asyncio.Event()
        self._carrying: list[asyncio.Task[None]] = []
        self._theirs: socket.socket | None = None
        self._how = ""

    def hello(self) -> None:
        """Note that it has said Hello."""
        super().hello()
        self._cluster.came_up()

    def called(self, host: str) -> str:
        """Return its node's name: the host's, and what distinguishes others of that name."""
        return f"{host}-{self.node_id[:_NODE_ID_CHARS]}"

    async def connect(self) -> socket.socket:
        """Have it started; return a stream to it, sealed from here on. Raises ``OSError``."""
        key = os.urandom(KEY_BYTES)
        place = next(iter(self.words))
        file = Path(place.folder, place.name, "key")
        await asyncio.to_thread(_write, file, key)
        ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        sealed = SealedStream(key, daemon=True)
        self._carrying = [
            asyncio.create_task(self._down(self._theirs, sealed.seal)),
            asyncio.create_task(self._up(self._theirs, sealed.open)),
        ]
        self._cluster.order(StartWorker(self.badge, str(file)))
        return ours

    async def _down(self, theirs: socket.socket, seal: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := await asyncio.get_running_loop().sock_recv(theirs, _READ):
                while self._under_way >= WINDOW:
                    self._fewer.clear()
                    await self._fewer.wait()
                sealed = seal(data)
                self._under_way += len(sealed)
                self._cluster.order(Down(self.badge, sealed))

    def taken(self, size: int) -> None:
        """Take that it has read so much."""
        self._under_way -= size
        self._fewer.set()

    async def _up(self, theirs: socket.socket, opened: Callable[[bytes], bytes]) -> None:
        read = 0
        try:
            while data := await self._coming.get():
                await asyncio.get_running_loop().sock_sendall(theirs, opened(data))
                read += len(data)
                if read >= NOTICE:
                    self._cluster.order(Read(self.badge, read))
                    read = 0
        except OSError as error:
            self._how = self._how or str(error)
        self.disconnect()

    def came(self, data: bytes) -> None:
        """Take what it says."""
        self._coming.put_nowait(data)

    def stopped(self, cause: str) -> None:
        """Take that nothing more comes of it, for that cause."""
        self._how = self._how or cause
        self._coming.put_nowait(b"")

    def disconnect(self) -> None:
        """Have it ended."""
        self._cluster.order(StopWorker(self.badge))
        for task in self._carrying:
            if task is not asyncio.current_task():
                task.cancel()
        if self._theirs is not None:
            self._theirs.close()

    async def parted(self) -> str:
        """Return how it ended."""
        self.disconnect()
        return self._how

    def fails(self, why: str, fix: str) -> None:
        """Note why no task can run there, and what helps; without that it is tried again."""
        self._cluster.failed(self.node_id, why, fix)

    def refused(self, provider: str) -> None:
        """Note that a provider refuses the key that is there, and is not the daemon's."""
        self._cluster.troubled(
            f"{provider} refuses the key of {self.node}", "put the daemon's there"
        )


def _write(file: Path, key: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(key)


# The box of the bridge: the host's network, Ray's own folders, our code; not the state directory,
# no home, no key but the cluster's token


def _command(address: str, token_file: str) -> list[str]:
    """Return the command line of a bridge to a cluster. Raises ``NotPossibleError``."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NotPossibleError("bwrap is missing: install bubblewrap")
    inside = processes.module("batchd.pool.bridge", address)
    return [bwrap, *_view(token_file), "--", *inside]


def _environment(token_file: str) -> dict[str, str]:
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
    packages = (sys.prefix, sys.base_prefix, *sites, str(code.PACKAGE))
    for place in dict.fromkeys(each for each in packages if each and Path(each).exists()):
        yield from ("--ro-bind", place, place)
    if token := _token(token_file):
        yield from ("--ro-bind", token, token)
