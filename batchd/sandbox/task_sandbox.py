"""The sandbox of a task: made for its first command; each later one enters it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from batchd.errors import SandboxError
from batchd.masking import Masker
from batchd.records import SandboxPolicy
from batchd.sandbox import network, process_table
from batchd.sandbox.bwrap import TMP, view
from batchd.sandbox.cgroup import DelegatedCgroup
from batchd.sandbox.child import DYING_S, readable
from batchd.sandbox.command_run import TOO_LONG, CommandEnd
from batchd.sandbox.command_user import CommandUser
from batchd.sandbox.command_watch import CommandWatcher, WatchedSandbox
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.entrance import Entrance, NotMadeError
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.network import AllowedHosts, RefusedHosts
from batchd.sandbox.output import CommandOutput, OutputReader
from batchd.sandbox.process_table import named
from batchd.sandbox.resource_shortage import PATIENCE_S, SHORTAGE_ERRNOS, patiently
from batchd.sandbox.shown import Cover

T = TypeVar("T")
#: A home in which nothing lies, and nothing can.
_NOWHERE = "/nonexistent"
#: What is left of a command for so long behind its end (looks, seconds), stays.
_LOOKS, _PAUSE_S = 10, 0.005
#: What goes on is named by so many of its processes.
_MOST_NAMED = 5
#: Of what it prints, so much is kept (bytes);
#: the rest is read and thrown away, since who prints must never wait.
_MOST_PRINTED = 16 << 20
#: A command that cannot begin beside what runs there has another sandbox after so long (seconds).
_BESIDE_S = 2.0
#: What a shell says of a process that was killed, of a program that cannot be run,
#: and of one that is not there.
_KILLED, _CANNOT_RUN, _NOT_FOUND = 137, 126, 127
#: Why a sandbox is over, if nothing has ended it.
ENDED = "it has ended by itself"
_OUT_OF_TIME = "killed with a command that ran out of its time"
_BROKEN_OFF = "killed with a command that was broken off"
#: Unlike ``head``, ``dd`` writes what comes as it comes.
_DRAIN = (
    'PATH=/usr/bin:/bin; dd of="$1" count="$2" bs=65536 iflag=count_bytes oflag=append conv=notrunc 2>/dev/null;'
    " exec cat >/dev/null"
)


async def unbroken(work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
    """Return what ``work`` returns; a cancellation is raised when that is over.

    ``cancelled`` is called at the first one: it may have the work end sooner.
    """
    task = asyncio.ensure_future(work)
    broken: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            if broken is None and cancelled is not None:
                cancelled()
            broken = error
    if broken is not None:
        task.exception()  # the cancellation is what counts
        raise broken
    return task.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSetting:
    """The setting of commands: what they see and who they are."""

    policy: SandboxPolicy
    #: The path of bubblewrap; empty: there is no sandbox.
    bwrap: str
    who: CommandUser
    #: What is laid over the machine's files, in a sandbox; where what it covers goes before one is
    #: made, that is made once more.
    cover: Cover | None
    #: Their home, where it is not the user's own or, in a sandbox, /tmp.
    home: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    #: Whether they share the machine's network.
    shared: bool = False
    #: Their way to some hosts.
    hosts: AllowedHosts | None = None
    #: Holds them to their limits, with a cgroup where there are any.
    watcher: CommandWatcher = field(default_factory=CommandWatcher)
    cgroup: DelegatedCgroup | None = None
    #: Knows what no output may show.
    masker: Masker = field(default_factory=Masker)
    #: So long one waits for what it needs to begin (seconds).
    patience_s: float = PATIENCE_S
    #: Of the ``Sandbox``: what places of one kind answered for their facts, and when; and by disk,
    #: the sync of all of it that is to come.
    known: dict[tuple[object, ...], tuple[str, float]] = field(default_factory=dict)
    syncing: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def apart(self, tmp: str) -> CommandSetting:
        """Return the same with ``tmp`` for home;
        empty: it cannot be reached outside of a sandbox.
        """
        if self.cover is not None:
            return replace(self, cover=self.cover.fresh())
        return replace(self, home=tmp or _NOWHERE)


class TaskSandbox:
    """One sandbox, which ends when nothing runs in it any more that belongs to it. To be ended."""

    def __init__(
        self, setting: CommandSetting, folders: TaskFolders, disk: DiskUsage, *, keeps: bool
    ) -> None:
        """``keeps``: it stays behind its command, with what that leaves running."""
        self._setting = setting
        self._folders = folders
        self._disk = disk
        self._keeps = keeps
        self._entrance: Entrance | None = None
        self._watch: WatchedSandbox
        self._refusals: RefusedHosts | None = None
        #: Ends all of it, once it is killed.
        self._rest = contextlib.AsyncExitStack()
        #: Read what no process in it could be started to read.
        self._readers: list[OutputReader] = []
        #: One command at a time.
        self._turns = asyncio.Lock()
        self._dying: asyncio.Task[None] | None = None
        #: Whether it is over, and why.
        self.over = False
        self.why = ""

    async def run(
        self,
        command: Sequence[bytes],
        *,
        stdin: bytes | int | None,
        timeout_s: float,
        output: CommandOutput,
    ) -> CommandEnd | None:
        """Run a command in it, which the first one makes;
        None: it did not begin, and the sandbox is over.

        One that runs out of its time is killed with all that it has started; where that cannot be
        kept apart from what ran before, with all of the sandbox,
        and so is one that is cancelled. Raises ``SandboxError``.
        """
        began = asyncio.get_running_loop().time()
        try:
            async with self._turns:
                if self._entrance is None and not await self._made(timeout_s):
                    return CommandEnd.of(began, output, None)
                broken_off = functools.partial(self._kill, _BROKEN_OFF)
                return await unbroken(
                    self._run(command, stdin, began, timeout_s, output), broken_off
                )
        except asyncio.CancelledError:
            await self.end(_BROKEN_OFF)
            raise
        except OSError as error:
            await self.end(f"killed: {error.strerror}")
            # Not chained: it may have run, so no caller may take this for a shortage.
            raise SandboxError(f"a command could not be followed to its end: {error}") from None

    async def _made(self, timeout_s: float) -> bool:
        """Make it, and return whether there was time for that. Raises ``SandboxError``."""
        out_of_time = functools.partial(self._kill, _OUT_OF_TIME)
        try:
            async with asyncio.timeout(timeout_s):
                await patiently(
                    lambda: unbroken(self._make(), out_of_time), self._setting.patience_s
                )
        except TimeoutError:
            await self._end(_OUT_OF_TIME)
            return False
        except OSError as error:
            raise SandboxError(f"a command could not be run: {error}") from error
        return True

    async def _make(self) -> None:
        """Raises ``OSError``, ``SandboxError``; then nothing of it is there."""
        setting, cover = self._setting, self._setting.cover
        own_tmp = self._folders.tmp is not None
        # What is covered is known before it is begun: nothing else has its turn between the two.
        covered = cover.look() if cover else {}
        seen = view(setting.policy, setting.who, network=setting.shared, own_tmp=own_tmp)
        try:
            async with contextlib.AsyncExitStack() as made:
                group = setting.cgroup.make(setting.policy) if setting.cgroup else None
                if group is not None:
                    made.callback(group.close)
                entrance = self._entrance = Entrance.begin(
                    setting.bwrap,
                    seen,
                    self._folders,
                    policy=setting.policy,
                    who=setting.who,
                    env=setting.env,
                    network=setting.shared,
                    group=group,
                    cover=cover.options() if cover else (),
                )
                made.push_async_callback(entrance.close)
                try:
                    await entrance.opened()
                except NotMadeError as error:
                    gone = cover is not None and cover.gone(covered)
                    raise _not_set_up(str(error).strip(), gone=gone) from None
                self._watch = WatchedSandbox(entrance, self._disk)
                made.callback(setting.watcher.forget, self._watch)
                if setting.hosts is not None:
                    opening = network.opened(setting.hosts, entrance.listening)
                    self._refusals = await made.enter_async_context(opening)
                self._rest, self.why = made.pop_all(), ""
        except BaseException:
            self._entrance = None
            raise

    async def _run(
        self,
        command: Sequence[bytes],
        stdin: bytes | int | None,
        began: float,
        timeout_s: float,
        output: CommandOutput,
    ) -> CommandEnd | None:
        assert self._entrance is not None, "it is made"
        before, (read_end, write_end) = await patiently(self._ready, self._setting.patience_s)
        reader = OutputReader(read_end, output)
        timed_out, status, log = False, _KILLED, ""
        left: tuple[str, ...] = ()
        try:
            try:
                timed_out, status = await self._ran(
                    command, write_end, stdin, began + timeout_s, beside=bool(before)
                )
            except OSError as error:
                if (why := _not_begun(error, command)) is None:
                    # It has just ended, or has taken the last process that it may have.
                    alive = self._entrance.alive and not isinstance(error, ProcessLookupError)
                    words = f"killed: no command could begin beside it ({error.strerror})"
                    await self._end(words if alive else ENDED)
                    if before or not alive:
                        return None
                    raise SandboxError(f"a command could not be run: {error}") from error
                status, said = why
                output.add(said.encode("utf-8", "replace"))
            except SandboxError:
                # Whether it has begun is not known: it is not begun a second time.
                await self._end("killed with the helper that enters it")
            excess = self._watch.ended()
            refused = self._refusals.taken() if self._refusals else ()
            if excess or self.why or not (self._keeps and self._entrance.alive):
                await self._end(f"killed: {excess}" if excess else ENDED)
            if not self.over:
                log, left = await self._kept(before, reader)
                if excess := self._watch.ended():
                    await self._end(f"killed: {excess}")
                    left = ()
        finally:
            reader.close(drain=True)
        end = CommandEnd.of(began, output, None if timed_out else status, excess)
        return replace(end, refused=refused, left=left, log=log)

    async def _ready(self) -> tuple[set[int], tuple[int, int]]:
        """Return what runs there already, and a pipe for what a command prints.

        Raises ``OSError``.
        """
        return {*self._watch.left()} if self._watch.began else set(), os.pipe()

    async def _ran(
        self,
        command: Sequence[bytes],
        output: int,
        stdin: bytes | int | None,
        deadline: float,
        *,
        beside: bool,
    ) -> tuple[bool, int]:
        """Run a command to its end; return whether its time ran out, also before it could begin,
        and its exit code as a shell has it. Closes ``output``.

        Raises ``OSError`` where it did not begin, and ``SandboxError`` where that is not known.
        """
        entrance = self._entrance
        assert entrance is not None, "it is made"
        clock = asyncio.get_running_loop().time
        source: int | None = None

        async def attempt() -> tuple[bool, int]:
            nonlocal source
            if clock() >= deadline:
                return True, _KILLED
            if source is None:
                source = memory_file(stdin) if isinstance(stdin, bytes) else stdin
            self._setting.watcher.begin(self._watch)
            entrance.start(command, output, source)
            timed_out = not await entrance.ended(deadline - clock())
            if timed_out and not await self._stopped(entrance):
                raise SandboxError("a command cannot be killed: it hangs in the kernel")
            try:
                return timed_out, entrance.answer
            except OSError as error:
                # Whatever runs out in a sandbox that is over, stays used up.
                raise error if entrance.alive else ProcessLookupError from None

        try:
            return await patiently(attempt, _BESIDE_S if beside else self._setting.patience_s)
        finally:
            os.close(output)
            if source is not None and source is not stdin:
                os.close(source)

    async def _stopped(self, entrance: Entrance) -> bool:
        """Kill a command that has run out of its time, with all that it has started;
        where that cannot be kept apart, with all of the sandbox. Return whether it is dead.
        """
        killed = False
        if self._keeps:
            with contextlib.suppress(OSError):
                killed = await asyncio.to_thread(
                    process_table.killed, entrance.command, entrance.first
                )
        if not killed:
            self._kill(_OUT_OF_TIME)
        return await entrance.ended(DYING_S)

    async def _kept(self, before: set[int], reader: OutputReader) -> tuple[str, tuple[str, ...]]:
        """Return which file what a command has left prints to, and what runs there by name."""

        async def left() -> list[int]:
            return self._watch.left()

        there = await patiently(left, self._setting.patience_s)
        for _ in range(_LOOKS):
            # What dies with its command, as the rest of a pipeline does, does not stay.
            if before.issuperset(there):
                break
            await asyncio.sleep(_PAUSE_S)
            there = await patiently(left, self._setting.patience_s)
        log = await self._drained(reader.handed())
        self._watch.idle = True
        if not there:
            self._setting.watcher.forget(self._watch)
        elif self._dying is None and self._entrance is not None:
            self._dying = asyncio.create_task(self._until_over(self._entrance))
        return log, self.running() if there else ()

    async def _drained(self, output: int | None) -> str:
        """Read what is printed there from within, and return the file that it goes to;
        empty: nothing is, or it is not kept.
        """
        if output is None:
            return ""
        # No name that a command inside could know before.
        assert self._entrance is not None, "it is made"
        log = f"{TMP}/background-{secrets.token_hex(3)}.log"
        words = ["/bin/sh", "-c", _DRAIN, "sh", log, str(_MOST_PRINTED)]
        try:
            drain = [word.encode() for word in words]
            await self._entrance.drain(drain, output)
        except (OSError, SandboxError):
            # Who prints must not wait, nor find its pipe broken: it is read here, and thrown away.
            self._readers.append(OutputReader(output, CommandOutput(1, Masker())))
            return ""
        os.close(output)
        return log

    def running(self) -> tuple[str, ...]:
        """Return what commands have left running, by the names and numbers that it has inside."""
        if self.over or self._entrance is None:
            return ()
        try:
            found = [name for number in self._watch.left() if (name := named(number))]
        except OSError:  # no descriptor is left to look by
            return ("it",)
        more = len(found) - _MOST_NAMED
        return (*found[:_MOST_NAMED], *((f"{more} more",) if more > 0 else ()))

    @property
    def why_over(self) -> str:
        """Why what ran in it does not run any more."""
        if self.over or self._entrance is None:
            return self.why
        excess = self._watch.ended()
        return f"killed: {excess}" if excess else self.why or ENDED

    async def end(self, why: str) -> None:
        """Kill what runs in it, if it is not over, and return when all of it is dead.

        Raises ``SandboxError``.
        """
        self._kill(why)

        async def end() -> None:
            async with self._turns:
                await self._end(why)

        await unbroken(end())

    def _kill(self, why: str) -> None:
        if self._entrance is not None and not self.over:
            self.why = self.why or why
            self._entrance.kill()

    async def _end(self, why: str) -> None:
        if self.over:
            return
        self.over, self.why = True, self.why or why
        if self._dying is not None and self._dying is not asyncio.current_task():
            self._dying.cancel()
        if self._entrance is None:
            return
        self._entrance.kill()
        self._watch.ended()  # of its cgroup, which goes with it
        for reader in self._readers:
            reader.close(drain=False)
        await self._rest.aclose()

    async def _until_over(self, entrance: Entrance) -> None:
        """End it when it has ended between two commands: by itself, or killed for a limit."""
        await readable(entrance.process)
        async with self._turns:
            excess = self._watch.ended()
            with contextlib.suppress(SandboxError):
                await self._end(f"killed: {excess}" if excess else ENDED)


def _not_begun(error: OSError, command: Sequence[bytes]) -> tuple[int, str] | None:
    """Return what a shell answers, and says, where the command itself cannot be started."""
    name = command[0].decode("utf-8", "replace")
    match error.errno:
        case errno.E2BIG:
            return _CANNOT_RUN, TOO_LONG
        case errno.ENOENT | errno.ENOTDIR:
            return _NOT_FOUND, f"{name}: {error.strerror}\n"
        case errno.EACCES | errno.ENOEXEC | errno.ELOOP | errno.ENAMETOOLONG | errno.EISDIR:
            return _CANNOT_RUN, f"{name}: {error.strerror}\n"
    return None


def _not_set_up(said: str, *, gone: bool) -> OSError | SandboxError:
    """Return why there is no sandbox, by what bwrap said: what it was short of, or anything else.

    ``gone``: what was to be covered has gone, or is another,
    since it was looked at; the next try looks again.
    """
    message = f"the sandbox could not be set up: {said}"
    number = next(
        (n for n in SHORTAGE_ERRNOS if os.strerror(n) in said), errno.EAGAIN if gone else None
    )
    return SandboxError(message) if number is None else OSError(number, message)
