"""The sandbox: opens the directories of tasks. ``Sandbox``, one a process."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping

from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.masking import Masker
from batchd.records import Network, SandboxPolicy, policy
from batchd.sandbox import cgroup, directory, network as way_out, probe, shown
from batchd.sandbox.child import prepare_process
from batchd.sandbox.command_user import CommandUser, as_root, checked, runner
from batchd.sandbox.command_watch import CommandWatcher
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.entrance import starter
from batchd.sandbox.folders import TaskFolders, open_tmp
from batchd.sandbox.network import AllowedHosts
from batchd.sandbox.resource_shortage import patiently
from batchd.sandbox.shown import Cover
from batchd.sandbox.task_sandbox import CommandSetting
from batchd.sandbox.workplace import Workplace


class Sandbox:
    """The sandbox: opens the directories of tasks as places where commands can run.

    Raises ``SandboxUnavailableError``, with the fix, where the policy's backend does not work. Use
    it from one thread that stays: sandboxes die with the thread that has started them.
    """

    def __init__(self, policy: SandboxPolicy) -> None:
        #: What commands may do.
        self.policy = policy
        self._bwrap = probe.ready(policy)
        self._cgroup = cgroup.delegated(policy)
        #: What holds all processes of a command together.
        self.limits = f"cgroup {self._cgroup.path}" if self._cgroup else "measured"
        self._watcher = CommandWatcher()
        #: As each ``CommandSetting`` has them.
        self._known: dict[tuple[object, ...], tuple[str, float]] = {}
        self._syncing: dict[int, asyncio.Task[None]] = {}

    def rest(self) -> None:
        """Give back what is kept ready for commands: this process has none to run for now."""
        starter().close()

    async def open(
        self,
        path: str,
        *,
        fresh: bool,
        network: Network,
        env: Mapping[str, str],
        masker: Masker | None = None,
        tmp: str = "",
        base: str = "",
        held: int | None = None,
    ) -> Workplace:
        """Open a task's directory for commands with ``env`` beside the usual variables.

        ``held``: what it held when the task began, as ``Workplace.held`` said. ``masker``: knows
        what no output may show. ``tmp``: the path of a folder that is their /tmp, made where it is
        not there yet; without it, each sandbox begins with an empty one. ``base``: that of a folder
        which they see read-only, as ``Workplace.base``. A ``fresh`` directory is made where it is
        not there yet; as root it goes to the owner of ``base``, if that is another user, else to
        the policy's. Raises ``SandboxError`` for a directory that cannot be used,
        an environment that no process can have, and a network that the policy does not grant.
        """
        hosts = self._hosts(network)
        checked(env)
        prepare_process()
        folders = await patiently(functools.partial(self._opened, path, tmp, base, fresh=fresh))
        try:
            who = runner(self.policy, os.fstat(folders.task), path)
            setting = CommandSetting(
                policy=self.policy,
                bwrap=self._bwrap,
                who=who,
                env={**(way_out.variables(hosts) if hosts else {}), **env},
                shared=network is True,
                hosts=hosts,
                cover=self._cover(shared=network is True) if self._bwrap else None,
                watcher=self._watcher,
                cgroup=self._cgroup,
                masker=masker or Masker(),
                known=self._known,
                syncing=self._syncing,
            )
            base_bytes = 0 if fresh and not base and held is None else held
            disk = DiskUsage(folders, self.policy, base=base_bytes)
            return Workplace(folders, setting, disk)
        except BaseException:
            folders.close()
            raise

    def _cover(self, *, shared: bool) -> Cover:
        try:
            return Cover(shown.of(self.policy, network=shared))
        except ValueError as error:
            raise SandboxError(str(error)) from None

    def _hosts(self, asked: Network) -> AllowedHosts | None:
        """Return the hosts of a list, if that is what is asked for."""
        try:
            if why := policy.refusal(asked, self.policy.network):
                raise SandboxError(f"the task's network: {why}")
            if isinstance(asked, bool) or not asked or not self._bwrap:
                return None
            return AllowedHosts.of(asked, self.policy.private_hosts)
        except ValueError as error:
            raise SandboxError(f"the task's network: {error}") from error

    async def _opened(self, path: str, tmp: str, base: str, *, fresh: bool) -> TaskFolders:
        folders = TaskFolders(-1, task_path=path, tmp_path=tmp, base_path=base)
        try:
            folders.base = directory.opened(base) if base else None
            if fresh:
                folders.task, folders.new = directory.fresh(path, self._owner(folders.base))
            else:
                folders.task = directory.opened(path)
            # Outside of a sandbox, who is not its owner could not reach it.
            if tmp and (self._bwrap or not as_root()):
                folders.tmp = open_tmp(tmp)
        except BaseException:
            folders.close()
            raise
        return folders

    def _owner(self, base: int | None) -> CommandUser:
        """Return whose a fresh directory is, as root. Raises ``SandboxError``."""
        found = os.fstat(base) if base is not None else None
        if found is None or found.st_uid == 0 or not as_root():
            try:
                return probe.someone(self.policy)
            except SandboxUnavailableError as error:
                raise SandboxError(f"the task's directory cannot be made: {error}") from error
        return CommandUser.of(found.st_uid, found.st_gid)
