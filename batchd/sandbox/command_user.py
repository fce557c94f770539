"""The user that runs a command, and its limits."""

from __future__ import annotations

import itertools
import os
import pwd
import re
import resource
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.records import SandboxPolicy

#: The user and group `nobody`, where nothing better is known.
_NOBODY = 65534
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
#: As root all commands of a user count together, whatever task they belong to;
#: without a sandbox, with all else that the user runs.
_TASKS_AT_ONCE = 16
_OPEN_FILES = 4096
#: The longest environment of a task (bytes): with the words of a command,
#: a program's start takes no more than two megabytes.
_MOST_VARIABLES = 1 << 19
_THEIR_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
#: What glibc itself ignores in programs of more rights
#: than who starts them, and what bash obeys unasked.
_STEERING = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|GETCONF_DIR|HOSTALIASES|LOCALDOMAIN|LOCPATH|MALLOC_.*|NIS_PATH"
    r"|NLSPATH|RESOLV_HOST_CONF|RES_OPTIONS|TZDIR|ENV|BASH_.*|BASHOPTS|SHELLOPTS|PS4",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class CommandUser:
    """A user and the group of his that commands run with."""

    uid: int
    gid: int
    name: str

    @classmethod
    def of(cls, uid: int, gid: int) -> CommandUser:
        """Return the owner of a file with these numbers; his own group, never root's."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(uid, gid or _NOBODY, "user")
        return cls(uid, entry.pw_gid or gid or _NOBODY, entry.pw_name)

    @classmethod
    def named(cls, name: str) -> CommandUser:
        """Return the user of ``[sandbox] user``.

        Raises ``SandboxUnavailableError`` for one that cannot be used.
        """
        example = "" if name == "nobody" else ', for example "nobody"'
        fix = f"name an ordinary user in `[sandbox] user`{example}"
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise SandboxUnavailableError(
                f"[sandbox] user: there is no user {name!r}: {fix}"
            ) from None
        if entry.pw_uid == 0:
            raise SandboxUnavailableError(f"[sandbox] user: commands never run as root: {fix}")
        return cls(entry.pw_uid, entry.pw_gid or _NOBODY, entry.pw_name)


def as_root() -> bool:
    """Return whether batchd may, and so must, change to another user before a command runs."""
    return os.geteuid() == 0


def check_user(policy: SandboxPolicy) -> None:
    """Raise ``SandboxUnavailableError``, with the fix,
    where the user that runs commands is not there (any more).
    """
    if as_root():
        CommandUser.named(policy.user)


def runner(policy: SandboxPolicy, directory: os.stat_result, path: str) -> CommandUser:
    """Return who runs commands in a directory: its owner, as root, else batchd's own user.

    Raises ``SandboxError`` for a directory that root owns.
    """
    if not as_root():
        return CommandUser.of(os.geteuid(), os.getegid())
    if directory.st_uid == 0:
        raise SandboxError(
            f"{path} belongs to root, and commands never run as root: give it to a user"
            f" (`chown -R {policy.user} {shlex.quote(path)}`), or run batchd as its owner"
        )
    return CommandUser.of(directory.st_uid, directory.st_gid)


def home(identity: CommandUser) -> str:
    """Return the user's home outside the sandbox, or /tmp where there is none."""
    try:
        path = pwd.getpwuid(identity.uid).pw_dir
    except KeyError:
        path = ""
    return path if Path(path).is_dir() else "/tmp"  # noqa: S108 (what else a user without a home can write to)


def helper(name: str) -> str:
    """Return the path of a program of util-linux. Raises ``SandboxUnavailableError`` without it."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise SandboxUnavailableError(f"{name} is missing: install util-linux")
    return path


def limits(policy: SandboxPolicy) -> list[tuple[str, int, int]]:
    """Return the limits of every command: prlimit's name, the kernel's number, and the value."""
    together = as_root() or policy.backend == "none"
    processes = policy.max_processes * (_TASKS_AT_ONCE if together else 1)
    wanted = [
        ("core", resource.RLIMIT_CORE, 0),
        ("fsize", resource.RLIMIT_FSIZE, policy.max_file_bytes),
        ("nofile", resource.RLIMIT_NOFILE, _OPEN_FILES),
        ("nproc", resource.RLIMIT_NPROC, processes),
        ("data", resource.RLIMIT_DATA, policy.max_memory_bytes),
    ]
    return [(name, kind, _capped(kind, value)) for name, kind, value in wanted]


def prefix(policy: SandboxPolicy, identity: CommandUser) -> list[str]:
    """Return what stands before a command so that it runs as ``identity``, with its limits."""
    options = [f"--{name}={value}" for name, _, value in limits(policy)]
    return [*becoming(identity), helper("prlimit"), *options, "--"]


def becoming(identity: CommandUser) -> list[str]:
    """Return what stands before a command so that it runs as ``identity``, without privileges."""
    if not as_root():
        return []
    return [
        helper("setpriv"),
        f"--reuid={identity.uid}",
        f"--regid={identity.gid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
    ]


def _capped(kind: int, value: int) -> int:
    """Return ``value``, or the hard limit where that is lower: only root may raise it."""
    hard = resource.getrlimit(kind)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def environment(identity: CommandUser, env: Mapping[str, str], *, home: str) -> dict[str, str]:
    """Return the environment to start a command with;
    what ``behind`` renames has another name in it. Raises ``SandboxError`` as ``checked`` does.
    """
    checked(env)
    carriers = _carriers(env)
    own = {carriers.get(name, name): value for name, value in env.items()}
    return {**usual(identity, home=home), **own}


def checked(env: Mapping[str, str]) -> None:
    """Raise ``SandboxError`` for a task's environment that no process can have."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise SandboxError(
                f"the task's env holds a name or value that no process can have: {name!r}"
            )
    size = sum(
        len(name.encode()) + len(value.encode("utf-8", "replace")) for name, value in env.items()
    )
    if size > _MOST_VARIABLES:
        raise SandboxError(f"the task's env is too large: {size:,} bytes")


def usual(identity: CommandUser, *, home: str) -> dict[str, str]:
    """Return what every command has, whatever its task says."""
    return {
        "PATH": _THEIR_PATH,
        "HOME": home,
        "USER": identity.name,
        "LOGNAME": identity.name,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
    }


def behind(env: Mapping[str, str]) -> list[str]:
    """Return the words in front of a command that give variables the names
    which the programs before it must not see.
    """
    carriers = _carriers(env)
    words = [f"--unset={carrier}" for carrier in carriers.values()]
    # It is env that puts the value in: what stands on its command line are the names.
    words += [f"{name}=${{{carrier}}}" for name, carrier in carriers.items()]
    return ["/usr/bin/env", f"--split-string={' '.join(words)}"] if words else []


def _carriers(env: Mapping[str, str]) -> dict[str, str]:
    """Return the names under which variables travel that must not have their own yet."""
    free = (name for n in itertools.count() if (name := f"BATCHD_LATE_{n}") not in env)
    return {name: next(free) for name in env if _late(name)}


def _late(name: str) -> bool:
    return as_root() and bool(_STEERING.fullmatch(name))
