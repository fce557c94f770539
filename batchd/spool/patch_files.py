"""The patches of tasks in the outbox: each beside its result, durable before that says so."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from batchd.records import Patch
from batchd.spool import files

#: No patch of ours is larger.
_MAX_PATCH_BYTES = 256 << 20


def publish(folder: Path, task: str, patch: Patch) -> None:
    """Write a task's patch, before its result says so;
    one without changes takes away what an earlier try has left.

    Can be repeated. Where it is withheld, batchd's user alone may read it.
    Raises ``OSError`` where it cannot be written.
    """
    path = folder / name(task)
    files.make_folder(folder)
    if patch.data:
        mode = 0o600 if patch.withheld else 0o666
        files.write_whole(
            path, lambda file: file.write(patch.data), replace=True, mode=mode, follow=False
        )
    else:
        path.unlink(missing_ok=True)


def name(task: str) -> str:
    """Return the name of the file that holds a task's patch, beside its result."""
    return f"{task}.patch"


def read(folder: Path, task: str) -> bytes:
    """Return the patch of a task.

    Raises ``OSError`` where it cannot be read, and for what is no file.
    """
    path = folder / name(task)
    if (data := files.content(path, _MAX_PATCH_BYTES)) is None:
        raise OSError(errno.EINVAL, "it is not a file, or no patch", str(path))
    return data


def whole(folder: Path, task: str, sha256: str) -> bytes | None:
    """Return the patch of a task; None where it is gone, or is not the one with this hash."""
    try:
        data = read(folder, task)
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None
