"""A task's directory as a place where its commands run: ``Workplace``, one a task."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from batchd import trees
from batchd.errors import SandboxError
from batchd.masking import MASK, Masker
from batchd.pauses import aside
from batchd.records import FileStamp, SandboxPolicy
from batchd.records.policy import Trigger
from batchd.sandbox import bwrap, command_run, directory, facts, launch, trigger_search
from batchd.sandbox.cgroup import DelegatedCgroup, TaskCgroup
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_user import CommandUser, behind, environment, home, prefix
from batchd.sandbox.command_watch import CommandWatcher
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.folders import TaskFolders, apart_tmp, open_tmp, remove_tmp
from batchd.sandbox.network import NetworkDoor
from batchd.sandbox.output import CommandOutput
from batchd.sandbox.resource_shortage import patiently
from batchd.sandbox.shown import Cover
from batchd.sandbox.standing import Entrance, StandingSandbox

#: Starts a command, given the descriptors of its input,
#: if it has any, and its output, and its cgroup.
Starter = Callable[..., ChildProcess]
#: A home in which nothing lies, and nothing can.
_NOWHERE = "/nonexistent"
T = TypeVar("T")

_NOTHING = Masker()
#: The kernel cuts a process's name to 15 bytes; of these a letter that is cut is left out.
_CUT_NAME = 12
#: A whole disk is synced once for all that ask within so long;
#: and so long, in seconds, a sync is waited for.
_TOGETHER_S, _SYNCED_S = 0.1, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSetting:
    """The setting of commands: what they see and who they are."""

    #: The path of bubblewrap; empty: there is no sandbox.
    bwrap: str
    #: The directory's name as they see it.
    path: str
    #: That of their /tmp, where it is not /tmp.
    tmp: str
    #: That of their home, where it is not the user's own or, in a sandbox, /tmp.
    home: str = ""
    who: CommandUser
    env: Mapping[str, str]
    #: Whether they share the machine's network.
    shared: bool
    #: Whether they are held back until they have a way out.
    gated: bool
    #: What is laid over the machine's files, in a sandbox.
    cover: Cover | None

    def apart(self, tmp: str) -> CommandSetting:
        """Return the same with ``tmp`` for /tmp and home;
        empty: it cannot be reached outside of a sandbox.
        """
        if self.cover is not None:
            return replace(self, cover=self.cover.fresh())
        return replace(self, tmp=tmp, home=tmp or _NOWHERE)

    def starter(self, folders: TaskFolders, policy: SandboxPolicy) -> Starter:
        """Return what starts commands in a directory, within the limits of ``policy``."""
        who, env, cover = self.who, self.env, self.cover
        if cover is not None:
            view = bwrap.view(
                policy, who, env, network=self.shared, gated=self.gated, own_tmp=bool(folders.tmp)
            )
            sandboxed = functools.partial(launch.sandboxed, self.bwrap, view, folders)
            return lambda command, **more: sandboxed(command, cover=cover.options(), **more)
        words = [*prefix(policy, who, limited=False), *behind(env)]
        before = [word.encode("utf-8", "replace") for word in words]
        place = {"TMPDIR": self.tmp} if self.tmp else {}
        variables = environment(who, {**place, **env}, home=self.home or home(who))
        plain = functools.partial(launch.plain, folders.task, variables)
        return lambda command, **descriptors: plain([*before, *command], **descriptors)


class Workplace:
    """A task's directory, and the commands that run in it. A context manager that closes itself."""

    def __init__(
        self,
        policy: SandboxPolicy,
        folders: TaskFolders,
        setting: CommandSetting,
        *,
        watcher: CommandWatcher,
        disk: DiskUsage,
        cgroup: DelegatedCgroup | None,
        door: NetworkDoor | None,
        facts: Callable[..., Awaitable[str]],
        masker: Masker,
        syncing: dict[int, asyncio.Task[None]],
    ) -> None:
        """``syncing``: by disk, the sync of all of it that is to come; of the ``Sandbox``."""
        self._policy = policy
        self._folders = folders
        self._setting = setting
        self._start = setting.starter(folders, policy)
        self._watcher = watcher
        self._disk = disk
        self._cgroup = cgroup
        self._group: TaskCgroup | None = None
        self._door = door
        self._facts = facts
        #: The sandbox that stays, also one that is over.
        self._standing: StandingSandbox | None = None
        #: Whether its directory was made when it was opened: nothing was in it then.
        self.new = folders.new
        #: Where its commands see what the directory begins as; empty: nowhere.
        self.base = folders.base_path and (bwrap.BASE if setting.bwrap else folders.base_path)
        #: Whether nothing has run here yet, a check included.
        self._untouched = True
        #: Takes secrets out of what commands print.
        self.masker = masker
        self._syncing = syncing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; nothing of its commands is left by then."""
        self._folders.close()
        if self._group is not None:
            self._group.close()
            self._group = None

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | int | None = None,
        timeout_s: float,
        max_output_bytes: int | None = None,
        at_most: int | None = None,
        masked: bool = True,
        stays: bool = False,
    ) -> command_run.CommandEnd:
        """Run a command in a sandbox of its own;
        it and all that it started are dead when this returns, or raises.

        With ``stays``, what it leaves running goes on where the policy allows that, and ``shell``
        enters there. ``stdin``: what it reads, or a descriptor that it gets. ``timeout_s`` is
        wall-clock time. Of its output ``max_output_bytes`` are kept, the policy's number by
        default, and no more than ``at_most``. Secrets in it are ``masked``, unless it is not to be
        shown. Raises ``SandboxError`` where the sandbox cannot be set up;
        a command that does not exist is an exit code.
        """
        if self._folders.task < 0:
            raise SandboxError("the task's directory is closed")
        self._untouched = False
        if any("\0" in word for word in argv):
            return command_run.CommandEnd(
                exit_code=126, output="a command cannot hold NUL characters\n"
            )
        command = [word.encode("utf-8", "replace") for word in argv]
        limit = self._policy.max_output_bytes if max_output_bytes is None else max_output_bytes
        limit = limit if at_most is None else min(limit, at_most)
        start, full = self._start, await self._disk.full()
        if full:
            # It may delete; whatever it would write, the kernel refuses.
            still = replace(self._policy, max_file_bytes=0)
            start = self._setting.starter(self._folders, still)
        left: list[command_run.LeftRunning] = []
        stays = stays and self.can_stay and not full and not self.running
        ran = await command_run.run(
            functools.partial(self._started, start, command, stays=stays),
            stdin=stdin,
            timeout_s=timeout_s,
            limit=limit,
            limits=(self._watcher, self._disk),
            door=self._door,
            cover=self._setting.cover,
            masker=self.masker if masked else _NOTHING,
            keep=left.append if stays else None,
        )
        if left:
            return await self._kept(ran, left[0], limit)
        return replace(ran, excess=await self._disk.after(full)) if full else ran

    @property
    def can_stay(self) -> bool:
        """Whether what commands leave running may go on:
        where there is a sandbox, and the policy allows it.
        """
        return bool(self._setting.bwrap) and self._policy.keep_processes

    async def _kept(
        self, ran: command_run.CommandEnd, left: command_run.LeftRunning, limit: int
    ) -> command_run.CommandEnd:
        """Keep what a command has left running;
        where that is not possible, it is ended, and why stands in ``lost``.

        Raises ``SandboxError``.
        """
        # It has its cgroup with it.
        self._group = None
        try:
            who, env = self._setting.who, self._setting.env
            enter = functools.partial(Entrance.open, policy=self._policy, who=who, env=env)
            self._standing = standing = StandingSandbox(left, enter)
        except OSError as error:
            await left.close()
            raise SandboxError(
                f"what a command has left running cannot be kept: {error}"
            ) from error
        log, lost, said = "", "", b""
        try:
            log = await standing.begin()
        except (OSError, SandboxError):
            lost = standing.lost
        finally:
            said = standing.rest(limit)
        more = self.masker.text(said.decode("utf-8", "replace"))
        ran = replace(ran, output=ran.output + more, log=log, lost=lost)
        return self._masked(replace(ran, left=standing.running()))

    def _masked(self, ran: command_run.CommandEnd) -> command_run.CommandEnd:
        """Return how a command ended, without secrets in what it names."""
        mask = self.masker.text
        left = tuple(map(self._named, ran.left))
        return replace(ran, refused=tuple(map(mask, ran.refused)), left=left)

    def _named(self, process: str) -> str:
        """Return a process's name and number, without a secret or the beginning of one."""
        name, behind, number = process.partition(" (pid ")
        if len(name.encode()) >= _CUT_NAME:
            name = self.masker.before_cut(name) or MASK
        return self.masker.text(f"{name}{behind}{number}")

    def begin(self) -> None:
        """Take the directory as it is now for what the task finds there."""
        self.new = False
        self._disk.begin()

    async def held(self) -> int | None:
        """Return what the directory held before its first command,
        in bytes on the disk; None: more than can be measured.

        Raises ``SandboxError``.
        """
        return await self._disk.before()

    async def full(self) -> str:
        """Look at the disk once more, at the task's end:
        return which limit it has passed, and by what.

        Empty also where no one can know.
        """
        return await self._disk.at_the_end()

    def _started(
        self,
        start: Starter,
        command: Sequence[bytes],
        stdin: int | None,
        output: int,
        *,
        stays: bool,
    ) -> ChildProcess:
        """Start a command in the task's cgroup, which is made for the first one.

        Raises ``OSError``.
        """
        start = functools.partial(start, stays=True) if stays else start
        if self._cgroup is None:
            return start(command, stdin=stdin, output=output)
        if self._group is None:
            self._group = self._cgroup.make(self._policy)
        self._group.begin()
        return start(command, stdin=stdin, output=output, group=self._group)

    async def shell(
        self, command: str, *, timeout_s: float, at_most: int | None = None, stays: bool = False
    ) -> command_run.CommandEnd:
        """Run a shell command, in bash where there is one;
        with ``stays``, in the sandbox that stays, if one does.

        Otherwise like ``run``.
        """
        argv = [bwrap.shell(), "-c", command]
        stays, standing = stays and "\0" not in command, self._standing
        if standing is not None and not standing.over and (full := await self._disk.full()):
            await standing.end(f"killed: {full}")
        if stays and standing is not None and not standing.over:
            limit = self._policy.max_output_bytes
            output = CommandOutput(limit if at_most is None else min(limit, at_most), self.masker)
            words = [word.encode("utf-8", "replace") for word in argv]
            ran = await standing.run(words, timeout_s=timeout_s, output=output)
            if ran is not None:
                return self._masked(ran)
        return await self.run(argv, timeout_s=timeout_s, at_most=at_most, stays=stays)

    @property
    def running(self) -> bool:
        """Whether something that a command has left runs here."""
        return self._standing is not None and not self._standing.over

    @property
    def why_over(self) -> str:
        """Why what a command had left does not run any more; empty: nothing was left here."""
        return self._standing.why if self._standing is not None else ""

    async def clear(self, why: str) -> None:
        """End what commands have left running, if anything does. Raises ``SandboxError``."""
        if self._standing is not None:
            await self._standing.end(why)

    @contextlib.asynccontextmanager
    async def apart(self) -> AsyncIterator[Workplace]:
        """Give the directory as a place with a /tmp of its own,
        empty and their home, which goes with it.

        Nothing but what lies in the directory is left of other commands. Raises ``SandboxError``.
        """
        await self.clear("a check began")
        self._untouched = False
        tmp = "" if self._folders.tmp is None else apart_tmp(self._folders.tmp_path)
        folders = await patiently(functools.partial(self._emptied, tmp))
        try:
            with Workplace(
                self._policy,
                folders,
                self._setting.apart(tmp),
                watcher=self._watcher,
                disk=self._disk.apart(folders),
                cgroup=self._cgroup,
                door=self._door,
                facts=self._facts,
                masker=self.masker,
                syncing=self._syncing,
            ) as place:
                yield place
        finally:
            if tmp:  # what is left of it, the next one removes, or the end of the task
                with contextlib.suppress(SandboxError):
                    await asyncio.to_thread(remove_tmp, tmp)

    async def _emptied(self, tmp: str) -> TaskFolders:
        """Return the directory once more, with an empty folder for /tmp where one is named."""
        try:
            folders = self._folders.copy()
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be opened: {error}") from error
        folders.tmp, folders.kept = None, folders.tmp
        try:
            if tmp:
                await asyncio.to_thread(remove_tmp, tmp)
                folders.tmp = open_tmp(tmp)
        except BaseException:
            folders.close()
            raise
        return folders

    async def facts(self) -> str:
        """Return one line for the model: system, user, directory, tools, network.

        Raises ``SandboxError``.
        """
        return await self._facts(functools.partial(self.run, timeout_s=facts.PATIENCE_S))

    async def left(self) -> tuple[Mapping[str, FileStamp] | None, Mapping[str, Trigger]]:
        """Return the ``files`` here, and the ``triggers``: none
        in a directory of its own in which nothing ran.
        """
        if self.new and self._untouched:
            return {}, {}
        return await asyncio.to_thread(lambda: (self.files(), self.triggers()))

    async def sync(self, before: directory.FileListing, after: directory.FileListing) -> str:
        """Make durable what has changed between two looks at the ``files``, or all of its disk.

        Return why it is not, in words; empty: it is.
        """
        work = asyncio.create_task(self._synced(before, after))
        # What hangs cannot be cancelled: it goes on, and keeps the directory open.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not (await asyncio.wait({work}, timeout=_SYNCED_S))[0]:
            return f"it did not take them within {_SYNCED_S:g} s"
        return str(work.exception() or "")

    async def _synced(self, *looks: directory.FileListing) -> None:
        """Do so. Raises ``OSError``; ``RuntimeError`` where no thread is to be had."""
        top = os.dup(self._folders.task)
        try:
            if not await aside(functools.partial(directory.sync, top, *looks), "sync"):
                device = (await aside(functools.partial(os.fstat, top), "sync")).st_dev
                if device not in self._syncing:
                    self._syncing[device] = asyncio.create_task(self._disk_synced(device, top))
                await self._syncing[device]
        finally:
            os.close(top)

    async def _disk_synced(self, device: int, top: int) -> None:
        await asyncio.sleep(_TOGETHER_S)
        del self._syncing[device]  # who asks from now on has written since
        await aside(functools.partial(trees.sync_disk, top), "sync")

    def flush(self) -> None:
        """Make durable all that was written to the directory's disk. Blocks. Raises ``OSError``."""
        trees.sync_disk(self._folders.task)

    def files(self, limit: int = 20_000, seconds: float = 2.0) -> Mapping[str, FileStamp] | None:
        """Return the stamps of the files here, by path.

        None where there are more than ``limit``, or ``seconds`` are not enough. Blocks for as long
        as it takes. Links are not followed;
        what tools keep for themselves (``.git``, ``node_modules``, …) is left out.
        """
        found = directory.files(self._folders.task, limit, seconds)
        return found and self.masker.value(found)

    async def leading_out(self) -> Mapping[str, str] | None:
        """Return the links here that lead to what a command has for itself, by path, with what
        they hold; None: there are too many files to look. Raises ``SandboxError``.
        """
        look = functools.partial(directory.leading_out, self._folders.task, self._setting.path)
        try:
            found = await patiently(lambda: asyncio.to_thread(look))
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be looked through: {error}") from error
        return found and self.masker.value(found)

    def look(self, look: Callable[[int], T]) -> T:
        """Return what ``look`` sees in the directory, which it gets open.

        Blocks for as long as that takes.
        """
        return look(self._folders.task)

    def triggers(self, seconds: float = 2.0) -> Mapping[str, Trigger]:
        """Return what other programs run or obey when somebody uses the directory, by path.

        Blocks like ``files``.
        """
        found = trigger_search.found(self._folders.task, self._folders.task_path, seconds)
        return {self.masker.text(path): trigger for path, trigger in found.items()}
