"""Files and folders that the operator names: secrets that do not stand in the configuration, and
what else is batchd's alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from batchd import masking, users
from batchd.config.reading import Section, leaves
from batchd.errors import NotPossibleError
from batchd.records import OwnPath

if TYPE_CHECKING:
    from batchd.config.sections import ConfigSections


def content(
    path: str | Path, examine: Callable[[os.stat_result], object] = lambda _: None
) -> bytes:
    """Return what is in a file.

    Raises ``OSError``, for a FIFO too: a reader of one would wait for its writer.

    ``examine`` is shown the file that is then read; what it raises ends the reading.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, which cannot be read again")
        examine(status)
        return file.read()


def secret(what: str, *, file: str, env: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return what a file holds now, or else a variable, without space around it; and what to call
    that place: both are empty where neither is named.

    Raises ``NotPossibleError``, which says ``what`` cannot be read, where the file cannot.
    """
    if not file:
        return environ.get(env, "").strip(), f"the environment variable {env}" if env else ""
    place = f"the file {file}"
    try:
        return content(file).decode().strip(), place
    except PermissionError:
        closed = users.closed(f"{what} cannot be read from {place}", Path(file))
        if closed.user == users.user(0):  # whom batchd is not to run as
            me = users.user(os.geteuid())
            fix = f"sudo chown {me} {file}, or move it to where this user may read it"
            raise NotPossibleError(f"{closed}: {fix}") from None
        raise closed from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise NotPossibleError(f"{what} cannot be read from {place}: {why}") from None


def named(section: Section, ending: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what keys with an ending name, ``_file`` or ``_env``, where something is, by place.

    A key that ends so names what holds a secret.
    """
    for place, value, _ in leaves(section):
        if value and str(place[-1]).endswith(ending):
            yield tuple(map(str, place)), value


def secrets(config: ConfigSections) -> Iterator[OwnPath]:
    """Yield the files that hold secrets."""
    for (*table, key), path in named(config, "_file"):
        yield OwnPath(f"[{'.'.join(table)}] {key}", path)
    for name, path in config.secrets.files.items():
        yield OwnPath(f"[secrets.files] {name}", path)
    if config.workspace.credentials:
        yield OwnPath("[workspace] credentials", config.workspace.credentials)


def kept(config: ConfigSections, file: str) -> Iterator[OwnPath]:
    """Yield all that no command may see: the spool, secrets.

    ``file``: the configuration's.

    Code may be read:
    a program of ``[notify]`` is among these only where it is kept from others already.
    """
    for key in ("inbox", "outbox", "state"):
        yield OwnPath(f"[paths] {key}", getattr(config.paths, key))
    yield OwnPath("[workspace] mirrors", config.workspace.mirrors)
    yield from secrets(config)
    if file and holds_secrets(config):
        yield OwnPath("this file, which holds keys", file)
    for name, receiver in config.notify.items():
        for word in receiver.command:
            path = shutil.which(word) or word
            # What this process cannot read, no command can.
            if Path(path).is_file() and os.access(path, os.R_OK) and not open_to_all(path):
                yield OwnPath(f"[notify.{name}] command", path)


def exposed(config: ConfigSections) -> Iterator[OwnPath]:
    """Yield what commands may see, and better do not:
    other tasks' directories, the home of batchd's user.
    """
    yield OwnPath("[workspace] root", config.workspace.root)
    for path in config.workspace.allow:
        yield OwnPath("[workspace] allow", path)
    yield OwnPath("the home of batchd's user", os.path.expanduser("~"))


def holds_secrets(config: ConfigSections) -> bool:
    """Return whether the configuration holds secrets itself."""
    tables: list[Mapping[str, object]] = [
        config.traces.headers,
        *(r.headers for r in config.notify.values()),
    ]
    addresses = [receiver.url for receiver in config.notify.values()]
    for provider in config.providers.values():
        tables += [provider.headers, provider.extra_body]
        addresses.append(provider.base_url.partition("?")[2])
    # Most addresses of Apprise hold a password or a token.
    apprise = any(r.kind == "apprise" and r.url for r in config.notify.values())
    return apprise or any(masking.named(tables)) or any(map(masking.names_secret, addresses))


def open_to_all(file: str) -> bool:
    """Return whether every user can read a file, and get to it."""
    path = Path(file).resolve()
    try:
        above = (folder.stat().st_mode for folder in path.parents)
        return bool(path.stat().st_mode & stat.S_IROTH) and all(m & stat.S_IXOTH for m in above)
    except OSError:
        return False
