"""Files and folders that are batchd's alone, by the keys that name them;
and which of the rest holds secrets.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from batchd import masking
from batchd.config import receivers
from batchd.config.sections import ConfigSections
from batchd.records import OwnPath


def secrets(config: ConfigSections) -> Iterator[OwnPath]:
    """Yield the files that hold secrets."""
    named = {f"[providers.{n}] api_key_file": p.api_key_file for n, p in config.providers.items()}
    named |= {f"[secrets.files] {name}": file for name, file in config.secrets.files.items()}
    named |= {
        f"[notify.{n}] {k}": getattr(r, k)
        for n, r in config.notify.items()
        for k in receivers.FILES
    }
    named |= {"[traces] headers_file": config.traces.headers_file}
    named |= {"[web] token_file": config.web.token_file}
    named |= {"[workspace] credentials": config.workspace.credentials}
    yield from (OwnPath(key, path) for key, path in named.items() if path)


def kept(config: ConfigSections, file: str) -> Iterator[OwnPath]:
    """Yield all that no command may see: the spool, secrets, the log.

    ``file``: the configuration's.

    Code may be read:
    a program of ``[notify]`` is among these only where it is kept from others already.
    """
    for key in ("inbox", "outbox", "state"):
        yield OwnPath(f"[paths] {key}", getattr(config.paths, key))
    yield OwnPath("[workspace] mirrors", config.workspace.mirrors)
    yield from secrets(config)
    if config.log.file:
        yield OwnPath("[log] file", config.log.file)
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
    providers = any(
        any(masking.named([p.headers, p.extra_body]))
        or masking.names_secret(p.base_url.partition("?")[2])
        for p in config.providers.values()
    )
    if any(masking.named(config.traces.headers)):
        return True
    return providers or any(
        # Most addresses of Apprise hold a password or a token.
        any(masking.named(r.headers))
        or masking.names_secret(r.url)
        or (r.kind == "apprise" and r.url)
        for r in config.notify.values()
    )


def open_to_all(file: str) -> bool:
    """Return whether every user can read a file, and get to it."""
    path = Path(file).resolve()
    try:
        above = (folder.stat().st_mode for folder in path.parents)
        return bool(path.stat().st_mode & stat.S_IROTH) and all(m & stat.S_IXOTH for m in above)
    except OSError:
        return False
