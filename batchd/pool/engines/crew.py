"""The crew: as many workers on a Ray cluster as there is work for,
each of which joins as any other does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from batchd import processes
from batchd.actions import Action
from batchd.errors import NotPossibleError
from batchd.log import get_logger
from batchd.pauses import doubled
from batchd.pool.engines import launcher_messages, sizes
from batchd.pool.engines.launcher_messages import (
    ClusterSize,
    Connected,
    FindRoom,
    NotConnected,
    RoomFound,
    StartWorker,
    StopWorker,
    WorkerStopped,
)
from batchd.pool.engines.shares import shares
from batchd.pool.engines.sizes import Takes
from batchd.pool.joining.ticket_maker import TicketMaker
from batchd.pool.supervisor import Supervisor
from batchd.records import Has, Needs

#: How often the crew is held against the work there is, in seconds.
_LOOK_S = 0.5
#: How long the cluster may take to answer.
_CONNECT_S = 90.0
#: After so long without a word of it that is reported, and then the launcher is started again.
_LATE_S, _SILENT_S = 8.0, 30.0
#: How long it may take to find room before that is reported.
_ROOM_S = 30.0
_NO_ROOM_FIX = "wait for what else runs there, or add a node"
#: How long a worker may take from its ticket to the gate.
_JOIN_S = 90.0
_JOIN_MINUTES = 2.0
#: A worker without a task for so long is ended where there are more than needed.
_IDLE_S = 60.0
#: The pauses after workers that never joined, and after launchers that ended.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
#: For how long a node is avoided on which no task can run.
_AVOID_S = 600.0
_ADD = "add a node that has it (`ray start --num-gpus`, or --resources for a label)"
#: How many kinds of needs a message names.
_NAMED = 3
_AGAIN = "wait: batchd tries again by itself"
_UNREACHED = "check that [pool] advertise can be reached from there"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewTerms:
    """How large the crew may be, and what each of its workers takes:
    ``[pool]`` and ``[ray]`` of the configuration.
    """

    #: Of the cluster's head.
    address: str
    least: int
    most: int
    agents_per_process: int
    takes: Takes
    #: What the launcher is started with.
    environ: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _Post:
    """One worker, from the order to find room for it to its end."""

    asked_at: float
    #: What its tasks need of their node.
    needs: Needs
    #: The nodes that are not looked at for room.
    avoid: tuple[str, ...] = ()
    #: Where there is room for it; empty: nowhere yet.
    node: str = ""
    node_id: str = ""
    launched_at: float = 0.0
    #: Whether it has come to the gate.
    seen: bool = False
    ending: bool = False


class Crew:
    """Keeps the workers. ``run`` it beside the pool."""

    def __init__(
        self,
        terms: Callable[[], CrewTerms],
        pool: Supervisor,
        tickets: TicketMaker,
        work: Callable[[], Mapping[Needs, int]],
    ) -> None:
        """``terms`` returns those of today.

        ``work`` returns how many tasks are at work, or could be, by what they need.
        """
        self._terms = terms
        self._pool = pool
        self._tickets = tickets
        self._work = work
        self._posts: dict[int, _Post] = {}
        self._badge = 0
        self._launcher: asyncio.subprocess.Process | None = None
        #: Whether it has reached the cluster.
        self._connected = False
        self._size: ClusterSize | None = None
        #: By node id: until when it is avoided.
        self._avoided: dict[str, float] = {}
        #: Workers in a row that never joined, and when the next one may be asked for.
        self._failures = 0
        self._not_before = 0.0
        #: Why there are no workers, with the fix, and since when.
        self.trouble: tuple[NotPossibleError, float] | None = None
        #: What tasks need that no node has, with the fix, and since when.
        self.lacking: tuple[NotPossibleError, float] | None = None

    async def run(self) -> None:
        """Keep a launcher, and through it the crew, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            begun = time.monotonic()
            try:
                await self._launch()
            except OSError as error:
                self._troubled(f"the launcher of Ray's workers cannot be started: {error}", _AGAIN)
            finally:
                # Its workers have ended with it.
                self._posts.clear()
            if time.monotonic() - begun > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _launch(self) -> None:
        """Run one launcher to its end."""
        launcher = await asyncio.create_subprocess_exec(
            *processes.module("batchd.pool.engines.launcher", self._terms().address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # Ray's own lines; what matters comes as news
            env=dict(self._terms().environ),
            process_group=0,
        )
        self._launcher = launcher
        try:
            async with asyncio.timeout(_CONNECT_S):
                while not self._connected:
                    self._take(await _news(launcher))
            await self._serve(launcher)
        except TimeoutError:
            self._troubled(self._unanswered(), _AGAIN)
        except EOFError:
            if self._connected or self.trouble is None:
                self._troubled("the launcher of Ray's workers has ended", _AGAIN)
        except (msgspec.MsgspecError, KeyError, ValueError) as error:
            why = f"the launcher of Ray's workers sends what batchd cannot read: {error}"
            self._troubled(why, _AGAIN)
        finally:
            self._launcher, self._connected = None, False
            with contextlib.suppress(ProcessLookupError):
                launcher.kill()
            await launcher.wait()

    async def _serve(self, launcher: asyncio.subprocess.Process) -> None:
        """Keep the crew, as long as the cluster answers. Raises ``EOFError``."""
        heard_at, late = time.monotonic(), False
        while (silent_s := time.monotonic() - heard_at) < _SILENT_S:
            try:
                async with asyncio.timeout(_LOOK_S):
                    self._take(await _news(launcher))
            except TimeoutError:
                if silent_s > _LATE_S:
                    self._troubled(self._unanswered(), _AGAIN)
                    late = True
            else:
                heard_at = time.monotonic()
                self.trouble = None if late else self.trouble
                late = False
            self._see()
            self._fit()

    def _unanswered(self) -> str:
        return f"the Ray cluster at {self._terms().address} does not answer any more"

    def _take(self, news: launcher_messages.News) -> None:
        match news:
            case Connected():
                self._connected, self.trouble = True, None
            case NotConnected(message=message, fix=fix):
                self._connected = False
                self._troubled(message, fix)
                raise EOFError
            case RoomFound():
                self._placed(news)
            case WorkerStopped(badge=badge, cause=cause):
                self._ended(badge, cause)
            case ClusterSize(draining=draining):
                self._size = news
                self._leave(draining)

    def _placed(self, placed: RoomFound) -> None:
        post = self._posts.get(placed.badge)
        if post is None or post.ending:
            return
        post.node, post.node_id, post.launched_at = placed.node, placed.node_id, time.monotonic()
        ticket = self._tickets.make(placed.addresses, _JOIN_MINUTES, placed.badge)
        has = Has(post.needs.gpu, (post.needs.label,) * bool(post.needs.label))
        self._order(StartWorker(placed.badge, str(ticket), placed.node, has))

    def _leave(self, draining: Collection[str]) -> None:
        """Make workers on nodes that Ray drains give their tasks back before the nodes are gone."""
        for badge, post in self._posts.items():
            if post.node_id in draining and not post.ending:
                if post.seen:
                    self._dismiss(badge)
                else:
                    self._end(badge, post)

    def _ended(self, badge: int, cause: str) -> None:
        post = self._posts.pop(badge, None)
        if post is None or post.seen or post.ending:
            return
        if post.node in self._pool.unfit:
            self._avoided[post.node_id] = time.monotonic() + _AVOID_S
        self._failures += 1
        pause_s = doubled(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, self._failures)
        self._not_before = time.monotonic() + pause_s
        where = f" on {post.node}" if post.node else ""
        self._troubled(f"a worker did not come up{where}: {cause}", _AGAIN)

    def _see(self) -> None:
        """See who has come to the gate, and who never did."""
        there = {worker.badge for worker in self._pool.workers if worker.greeted}
        now = time.monotonic()
        for badge, post in self._posts.items():
            if badge in there and not post.seen:
                post.seen, self._failures, self.trouble = True, 0, None
            elif post.launched_at and not (post.seen or post.ending):
                if now - post.launched_at > _JOIN_S:
                    self._end(badge, post)
                    self._troubled(f"a worker on {post.node} did not reach the daemon", _UNREACHED)
            elif post.seen and badge not in there and not post.ending:
                self._end(badge, post)

    def _fit(self) -> None:
        """Ask for workers, or end some."""
        now, terms = time.monotonic(), self._terms()
        kept = {badge: post for badge, post in self._posts.items() if not post.ending}
        work = self._work()
        wanted = shares(
            work,
            most=terms.most,
            least=terms.least,
            agents=terms.agents_per_process,
            possible=self._possible,
        )
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        avoid = tuple(sorted(self._avoided))
        kinds = {*wanted, *(post.needs for post in kept.values())}
        for needs in sorted(
            kinds, key=lambda needs: not needs
        ):  # tasks without needs get what is left
            theirs = {badge: post for badge, post in kept.items() if post.needs == needs}
            if (missing := wanted.get(needs, 0) - len(theirs)) < 0:
                self._shrink(theirs, -missing, _IDLE_S)
            elif now >= self._not_before:
                for _ in range(missing if needs else min(missing, terms.most - self._count())):
                    self._ask(now, avoid, needs)
        self._make_way(terms.most)
        pending = {badge: post for badge, post in kept.items() if not post.node}
        for badge, post in pending.items():
            if post.avoid != avoid:  # Ray would hold to what it was asked first
                self._end(badge, post)
        if not any(wanted.values()) and not kept:
            self.trouble = None  # whatever it was, nothing waits for it
        self._report(kept, pending, [needs for needs, tasks in work.items() if needs and tasks])

    def _report(
        self, kept: Mapping[int, _Post], pending: Mapping[int, _Post], asked: Iterable[Needs]
    ) -> None:
        """Say what no node has, and what none has room for."""
        now = time.monotonic()
        plain = [post for post in pending.values() if not post.needs]
        if plain and self._size and (lacks := sizes.lacking(self._size.nodes, self._terms().takes)):
            fix = "lower [ray] cpus_per_process or memory_mb_per_process, or add a node"
            self._troubled(lacks, fix)
        elif len(pending) == len(kept) and any(
            now - p.asked_at > _ROOM_S for p in pending.values() if self._possible(p.needs)
        ):
            self._troubled("there is no room on the Ray cluster for a worker", _NO_ROOM_FIX)
        unmet = sorted(needs for needs in asked if not self._possible(needs))
        if not unmet or self._size is None:
            self.lacking = None
            return
        named = "; others ".join(map(str, unmet[:_NAMED]))
        why = f"tasks need {named}, and no node of the Ray cluster has that beside a worker's CPUs and memory"
        error = NotPossibleError(f"{why}: {_ADD}")
        if self.lacking is None or str(self.lacking[0]) != str(error):
            get_logger().error(Action.CLUSTER_TROUBLE, message=str(error))
        self.lacking = error, self.lacking[1] if self.lacking else time.time()

    def _ask(self, now: float, avoid: tuple[str, ...], needs: Needs) -> None:
        """Ask the launcher to find room for one more worker."""
        terms = self._terms()
        self._badge += 1
        self._posts[self._badge] = _Post(now, needs, avoid)
        self._order(
            FindRoom(
                badge=self._badge,
                daemon=self._tickets.dialled,
                cpus=terms.takes.cpus,
                memory_bytes=terms.takes.memory_bytes,
                needs=needs,
                avoid=avoid,
            )
        )

    def _shrink(self, kept: Mapping[int, _Post], surplus: int, idle_s: float) -> int:
        """End workers that are not needed: first those for which there is no room yet,
        then those that are idle; return how many are left.
        """
        for badge in [badge for badge, post in kept.items() if not post.node][:surplus]:
            self._end(badge, kept[badge])
            surplus -= 1
        idle = [badge for badge in self._pool.idle(idle_s) if badge in kept]
        for badge in idle[:surplus]:
            self._dismiss(badge)
            surplus -= 1
        return surplus

    def _make_way(self, most: int) -> None:
        """End workers beyond the most that may be, for tasks that need something:
        one that works gives its tasks back.
        """
        kept = {badge: post for badge, post in self._posts.items() if not post.ending}
        plain = {badge: post for badge, post in kept.items() if not post.needs}
        surplus = self._count() - most
        left = self._shrink(plain, surplus, 0.0) if surplus > 0 and len(plain) < len(kept) else 0
        for badge in [badge for badge, post in plain.items() if not post.ending][:left]:
            self._dismiss(badge)

    def _count(self) -> int:
        """Return how many workers there are, or may be once there is room for them."""
        kept = (post for post in self._posts.values() if not post.ending)
        return sum(self._possible(post.needs) for post in kept)

    def _dismiss(self, badge: int) -> None:
        self._pool.dismiss(badge)
        self._posts[badge].ending = True

    def _end(self, badge: int, post: _Post) -> None:
        post.ending = True
        self._order(StopWorker(badge))

    def _possible(self, needs: Needs) -> bool:
        """Whether a worker for these needs is one that some node has,
        as all are taken to be that need nothing.
        """
        nodes = self._size.nodes if self._size else ()
        return not needs or sizes.possible(nodes, self._terms().takes, needs)

    def _order(self, order: launcher_messages.Order) -> None:
        if self._launcher is not None and self._launcher.stdin is not None:
            self._launcher.stdin.write(launcher_messages.line(order))

    def _troubled(self, cause: str, fix: str) -> None:
        error, since = NotPossibleError(f"{cause}: {fix}"), time.time()
        if self.trouble is not None:
            since = self.trouble[1]
        if self.trouble is None or str(self.trouble[0]) != str(error):
            get_logger().error(Action.CLUSTER_TROUBLE, message=str(error))
        self.trouble = error, since


async def _news(launcher: asyncio.subprocess.Process) -> launcher_messages.News:
    """Return what the launcher says next. Raises ``EOFError`` where it has ended."""
    assert launcher.stdout is not None, "a pipe was asked for"
    if not (read := await launcher.stdout.readline()):
        raise EOFError
    news: launcher_messages.News = launcher_messages.message(read)
    return news
