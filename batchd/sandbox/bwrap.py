"""The argument list of bubblewrap: what a command sees, and what it does not.

Nothing secret may stand in the environment or on the command line of bwrap itself, nor of what it
becomes: that is PID 1 inside, where both can be read. So its environment is empty, and its
arguments come by a descriptor. No command is bwrap's own: each enters (``entrance``).
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox import shown
from batchd.sandbox.command_user import CommandUser, as_root
from batchd.sandbox.memory_files import lasting
from batchd.sandbox.shown import folder

#: Where a command finds its task's directory.
TASK = "/task"
#: Where it finds what that directory began as.
BASE = "/base"
#: Where it finds its /tmp, which is its home too.
TMP = "/tmp"  # noqa: S108 (the sandbox's own)
#: Of which files of the machine each command gets a copy (bytes).
MOST_COPIED = 1 << 20
#: What programs expect of /dev/shm, which is memory (bytes).
_MOST_SHM = 64 << 20
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
# Lowest in git's order, so that a repository's own identity wins; and yet "protected", so that
# safe.directory counts, without which git refuses repositories of other owners.
_GITCONFIG = (
    "[safe]\n\tdirectory = *\n[user]\n\tname = batchd\n\temail = batchd@localhost\n"
    "[init]\n\tdefaultBranch = main\n"
)


@dataclass(frozen=True, slots=True)
class CommandView:
    """The view of commands: what is the same for all sandboxes of a workplace."""

    #: The options, each with its terminator, up to those that name descriptors,
    #: and to what is laid over what they show.
    options: bytes
    #: Those that come last of all.
    last: bytes
    #: Files of ours of which each command gets a copy: its place, and the path of the file.
    contents: tuple[tuple[str, str], ...]
    #: The machine's own files of which each command gets a copy,
    #: in the same place: a mount takes six times as long.
    copied: tuple[str, ...]


def view(
    policy: SandboxPolicy, identity: CommandUser, *, network: bool, own_tmp: bool = False
) -> CommandView:
    """Return what commands see; ``own_tmp``: they are given a /tmp that lasts.

    Raises ``SandboxError`` for what cannot be shown.
    """
    try:
        seen = shown.of(policy, network=network)
    except ValueError as error:
        raise SandboxError(str(error)) from None
    return _common(policy, identity, seen.always, network=network, own_tmp=own_tmp)


@functools.cache
def _common(
    policy: SandboxPolicy,
    identity: CommandUser,
    always: Sequence[tuple[str, str]],
    *,
    network: bool,
    own_tmp: bool,
) -> CommandView:
    """Return it; a process has few of these, and asks for them always again."""
    copied = tuple(place for place, _ in always if _can_be_copied(place))
    options = [
        *_namespaces(network=network),
        *("--new-session", "--hostname", "batchd"),
        *("--cap-drop", "ALL"),
        *folder("/etc"),
        *_system([place for place, _ in always if place not in copied]),
        *("--proc", "/proc", "--dev", "/dev"),
        *([] if own_tmp else _tmpfs(policy.tmp_bytes, TMP)),
        *_tmpfs(max(min(policy.tmp_bytes // 4, _MOST_SHM), 1 << 16), "/dev/shm"),  # noqa: S108 (the sandbox's own)
        *folder("/run"),
        *folder("/var"),
        *("--symlink", TMP, "/var/tmp"),  # noqa: S108 (the sandbox's own)
        *("--chdir", "/", "--clearenv"),
    ]
    last = [
        *("--remount-ro", "/", "--remount-ro", "/dev"),
        # By /proc a program writes into the memory of others:
        # a check's shell runs what the task wrote.
        *("--remount-ro", "/proc"),
    ]
    # No filter of system calls: what a command may not do, who starts it has given up.
    files = _files(identity, network=network).items()
    return CommandView(
        options=encoded(options),
        last=encoded(last),
        contents=tuple((place, lasting(data)) for place, data in files),
        copied=copied,
    )


def encoded(options: Iterable[str]) -> bytes:
    """Return options as ``--args`` reads them."""
    return "\0".join((*options, "")).encode("utf-8", "replace")


def _namespaces(*, network: bool) -> list[str]:
    if not as_root():
        shared = ["--share-net"] if network else []
        return ["--unshare-all", *shared, "--unshare-user", "--disable-userns"]
    # --unshare-all would make a user namespace too; in it, the directory's owner has no number.
    options = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    return options if network else [*options, "--unshare-net"]


def opened(path: str) -> int | None:
    """Open a file of the machine as it is now, to be copied; None:
    it is not there, large, or not one that every user may read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(descriptor)
    mode = found.st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IROTH and found.st_size <= MOST_COPIED:
        return descriptor
    os.close(descriptor)
    return None


def _can_be_copied(path: str) -> bool:
    if (descriptor := opened(path)) is None:
        return False
    os.close(descriptor)
    return True


def _system(places: Iterable[str]) -> list[str]:
    """Return the read-only part of the system: /usr, what leads to it, and a little of /etc."""
    options: list[str] = []
    for place in places:
        if place.startswith("/etc/"):
            above = os.path.dirname(place)
            options += [] if above == "/etc" else folder(above)
            options += ["--ro-bind-try", place, place]
        else:
            options += ["--ro-bind", place, place]
    for name in shown.LEADING:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
    return options


def _tmpfs(size: int, path: str) -> list[str]:
    return ["--perms", "1777", "--size", str(size), "--tmpfs", path]


def _files(identity: CommandUser, *, network: bool) -> dict[str, bytes]:
    uid, gid, name = identity.uid, identity.gid, identity.name
    passwd = f"root:x:0:0:root:/:/usr/sbin/nologin\n{name}:x:{uid}:{gid}::/tmp:/bin/sh\n"
    group = f"root:x:0:\n{name}:x:{gid}:\n"
    files = {
        "/etc/passwd": passwd,
        "/etc/group": group,
        "/etc/nsswitch.conf": _NSSWITCH,
        "/etc/gitconfig": _GITCONFIG,
    }
    if not network:
        files["/etc/hosts"] = _HOSTS
    return {path: text.encode() for path, text in files.items()}


@functools.cache
def shell() -> str:
    """Return the shell that runs commands."""
    return "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
