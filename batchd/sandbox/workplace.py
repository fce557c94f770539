"""A task's directory as a place where its commands run: ``Workplace``, one a task."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self, TypeVar

from batchd import trees
from batchd.errors import SandboxError
from batchd.masking import MASK, Masker
from batchd.pauses import aside
from batchd.records import FileStamp
from batchd.records.policy import Trigger
from batchd.sandbox import bwrap, command_run, directory, facts, launch, trigger_search
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_user import behind, environment, helper, home, prefix
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.folders import TaskFolders, apart_tmp, open_tmp, remove_tmp
from batchd.sandbox.network import described
from batchd.sandbox.output import CommandOutput
from batchd.sandbox.resource_shortage import patiently
from batchd.sandbox.task_sandbox import CommandSetting, TaskSandbox

T = TypeVar("T")

_NOTHING = Masker()
#: The kernel cuts a process's name to 15 bytes; of these a letter that is cut is left out.
_CUT_NAME = 12
#: A whole disk is synced once for all that ask within so long;
#: and so long, in seconds, a sync is waited for.
_TOGETHER_S, _SYNCED_S = 0.1, 10.0


class Workplace:
    """A task's directory, and the commands that run in it.

    A context manager, which ends what runs there, and closes the directory.
    """

    def __init__(self, folders: TaskFolders, setting: CommandSetting, disk: DiskUsage) -> None:
        self._folders = folders
        self._setting = setting
        self._disk = disk
        #: That of the task's commands, also one that is over.
        self._sandbox: TaskSandbox | None = None
        #: The directory's name as its commands see it.
        self._seen_as = bwrap.TASK if setting.bwrap else folders.task_path
        #: Whether its directory was made when it was opened: nothing was in it then.
        self.new = folders.new
        #: Where its commands see what the directory begins as; empty: nowhere.
        self.base = folders.base_path and (bwrap.BASE if setting.bwrap else folders.base_path)
        #: Whether nothing has run here yet, a check included.
        self._untouched = True
        #: Takes secrets out of what commands print.
        self.masker = setting.masker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what runs there, and close the directory. Raises ``SandboxError``."""
        try:
            await self.clear("its place was closed")
        finally:
            self._folders.close()

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
        own: bool = False,
    ) -> command_run.CommandEnd:
        """Run a command in a sandbox of its own;
        it and all that it started are dead when this returns, or raises.

        With ``stays``, where the policy allows that, it runs in the task's sandbox, and what it
        leaves running goes on there. ``own``: it is a program of batchd's own, which leaves
        nothing: it runs there too, unless something runs there that could forge what it shows.
        ``stdin``: what it reads, or a descriptor that it gets.
        ``timeout_s`` is wall-clock time. Of its output ``max_output_bytes`` are kept, the policy's
        number by default, and no more than ``at_most``. Secrets in it are ``masked``, unless it is
        not to be shown. Raises ``SandboxError`` where the sandbox cannot be set up;
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
        setting = self._setting
        limit = setting.policy.max_output_bytes if max_output_bytes is None else max_output_bytes
        limit = limit if at_most is None else min(limit, at_most)
        output = CommandOutput(limit, self.masker if masked else _NOTHING)
        if full := await self._disk.full():
            # It may delete; whatever it would write, the kernel refuses.
            command = [helper("prlimit").encode(), b"--fsize=0", b"--", *command]
        if setting.bwrap:
            there = self.can_stay and (stays or (own and not self.running))
            ran = await self._sandboxed(command, stdin, timeout_s, output, stays=there)
        else:
            start = functools.partial(self._plain, command)
            limits = (setting.watcher, self._disk)
            ran = await command_run.run(
                start, stdin=stdin, timeout_s=timeout_s, output=output, limits=limits
            )
        return replace(ran, excess=await self._disk.after(full)) if full else ran

    async def _sandboxed(
        self,
        command: Sequence[bytes],
        stdin: bytes | int | None,
        timeout_s: float,
        output: CommandOutput,
        *,
        stays: bool,
    ) -> command_run.CommandEnd:
        """Run a command in the task's sandbox, or one of its own. Raises ``SandboxError``."""
        # What ends as a command would begin has not begun it.
        for _ in range(2):
            sandbox = self._sandbox if stays else None
            if sandbox is None or sandbox.over:
                sandbox = TaskSandbox(self._setting, self._folders, self._disk, keeps=stays)
            if stays:
                self._sandbox = sandbox
            ran = await sandbox.run(command, stdin=stdin, timeout_s=timeout_s, output=output)
            if ran is not None:
                return self._masked(ran)
        raise SandboxError("a sandbox has ended before a command began in it, and another one too")

    def _plain(self, command: Sequence[bytes], stdin: int | None, output: int) -> ChildProcess:
        """Start a command without a sandbox. Raises ``OSError``, ``SandboxError``."""
        setting = self._setting
        words = [*prefix(setting.policy, setting.who), *behind(setting.env)]
        before = [word.encode("utf-8", "replace") for word in words]
        place = {} if self._folders.tmp is None else {"TMPDIR": self._folders.tmp_path}
        at_home = setting.home or home(setting.who)
        variables = environment(setting.who, {**place, **setting.env}, home=at_home)
        argv = [*before, *command]
        return launch.plain(self._folders.task, variables, argv, stdin=stdin, output=output)

    @property
    def can_stay(self) -> bool:
        """Whether what commands leave running may go on:
        where there is a sandbox, and the policy allows it.
        """
        return bool(self._setting.bwrap) and self._setting.policy.keep_processes

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

    async def shell(
        self, command: str, *, timeout_s: float, at_most: int | None = None, stays: bool = False
    ) -> command_run.CommandEnd:
        """Run a shell command, in bash where there is one. Otherwise like ``run``."""
        argv = [bwrap.shell(), "-c", command]
        return await self.run(argv, timeout_s=timeout_s, at_most=at_most, stays=stays)

    @property
    def running(self) -> bool:
        """Whether something that a command has left runs here."""
        return self._sandbox is not None and bool(self._sandbox.running())

    @property
    def why_over(self) -> str:
        """Why what a command had left does not run any more; empty: nothing ran here."""
        return self._sandbox.why_over if self._sandbox is not None else ""

    async def clear(self, why: str) -> None:
        """End the sandbox of the task's commands, with what they have left running.

        Raises ``SandboxError``.
        """
        if self._sandbox is not None:
            await self._sandbox.end(why)

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
            disk = self._disk.apart(folders)
            async with Workplace(folders, self._setting.apart(tmp), disk) as place:
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
                folders.tmp, folders.tmp_path = open_tmp(tmp), tmp
        except BaseException:
            folders.close()
            raise
        return folders

    async def facts(self) -> str:
        """Return one line for the model: system, user, directory, tools, network.

        It is asked for once for all places of a kind. Raises ``SandboxError``.
        """
        setting, now = self._setting, time.monotonic()
        kind = (setting.who, setting.shared, setting.env.get("PATH"))
        answer, asked_at = setting.known.get(kind, ("", -facts.KEPT_S))
        if now - asked_at >= facts.KEPT_S:
            ran = await self.run(facts.COMMAND, timeout_s=facts.PATIENCE_S)
            answer = ran.output if ran.exit_code == 0 else ""
            if answer:
                setting.known[kind] = (answer, now)
        if setting.hosts is not None:
            network = described(setting.hosts)
        else:
            network = "network: yes" if setting.shared or not setting.bwrap else "no network"
        return facts.line(answer, user=setting.who.name, directory=self._seen_as, network=network)

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
        with trees.held(os.dup(self._folders.task)) as top:
            if not await aside(functools.partial(directory.sync, top, *looks), "sync"):
                device = (await aside(functools.partial(os.fstat, top), "sync")).st_dev
                if device not in self._setting.syncing:
                    self._setting.syncing[device] = asyncio.create_task(
                        self._disk_synced(device, top)
                    )
                await self._setting.syncing[device]

    async def _disk_synced(self, device: int, top: int) -> None:
        await asyncio.sleep(_TOGETHER_S)
        del self._setting.syncing[device]  # who asks from now on has written since
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
        look = functools.partial(directory.leading_out, self._folders.task, self._seen_as)
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
