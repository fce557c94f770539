"""The token where none is configured: made at the first start, and kept in the state directory."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from batchd.errors import NotPossibleError

#: The file in the state directory, mode 0600.
NAME = "web.token"
_MIN_TOKEN_CHARS = 16


def kept(state: Path) -> str:
    """Return the token of a state directory; it is made where there is none.

    Raises ``NotPossibleError``.
    """
    path = state / NAME
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        _write(path, state.stat())
        return _read(path)
    except OSError as error:
        raise NotPossibleError(
            f"{path}: the token of the page cannot be kept there: {error.strerror}; "
            "run this as the daemon's user, or name a token_file in [web]"
        ) from None


def _read(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        text = file.read(1024) if stat.S_ISREG(found.st_mode) else b""
    if found.st_uid not in {0, os.geteuid(), path.parent.stat().st_uid} or found.st_mode & 0o077:
        raise NotPossibleError(f"{path}: others may read or change it; remove it, and start again")
    token = text.decode("ascii", "replace").strip()
    if len(token) < _MIN_TOKEN_CHARS:
        raise NotPossibleError(f"{path}: it holds no token; remove it, and start again")
    return token


def _write(path: Path, state: os.stat_result) -> None:
    """Make a token; of two processes that do so at once, one wins, and both read what it wrote."""
    draft = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n".encode())
            if os.geteuid() == 0:  # the daemon's user must be able to read it, too
                os.fchown(fd, state.st_uid, state.st_gid)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
