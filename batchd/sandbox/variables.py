"""The environment of commands: what they start with, and what must not reach what runs before them.

As root, a command is started by a program (``setpriv``) that is still root. Variables that have any
program load code, or a shell run some, would take effect there: they travel under harmless names,
and get their own behind it. Never on a command line, which every user of the machine can read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from batchd.errors import SandboxError
from batchd.sandbox.command_user import CommandUser, as_root

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
#: What glibc itself ignores in programs of more rights
#: than who starts them, and what bash obeys unasked.
_STEERING = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|GETCONF_DIR|HOSTALIASES|LOCALDOMAIN|LOCPATH|MALLOC_.*|NIS_PATH"
    r"|NLSPATH|RESOLV_HOST_CONF|RES_OPTIONS|TZDIR|ENV|BASH_.*|BASHOPTS|SHELLOPTS|PS4",
    re.DOTALL,
)


def environment(identity: CommandUser, env: Mapping[str, str], *, home: str) -> dict[str, str]:
    """Return the environment to start a command with;
    what ``behind`` renames has another name in it.

    Raises ``SandboxError`` where a name or value holds a NUL,
    which would end an option of bwrap and begin another.
    """
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise SandboxError(
                f"the task's env holds a name or value that no process can have: {name!r}"
            )
    carriers = _carriers(env)
    own = {carriers.get(name, name): value for name, value in env.items()}
    return {**usual(identity, home=home), **own}


def usual(identity: CommandUser, *, home: str) -> dict[str, str]:
    """Return what every command has, whatever its task says."""
    return {
        "PATH": _PATH,
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
