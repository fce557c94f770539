"""The setting of a task's commands: what they see and who they are, and how they are started so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from batchd.records import SandboxPolicy
from batchd.sandbox import bwrap, launch
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_user import CommandUser, home, prefix
from batchd.sandbox.cover import Cover
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.variables import behind, environment

#: Starts a command, given the descriptors of its input,
#: if it has any, and its output, and its cgroup.
Starter = Callable[..., ChildProcess]
#: A home in which nothing lies, and nothing can.
_NOWHERE = "/nonexistent"


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
