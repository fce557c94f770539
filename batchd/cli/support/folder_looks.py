"""What ``batchd check`` says of the spool's folders:
whether they answer, are there, or can be made, and what room their disks have.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batchd import config, free_room, silent_paths
from batchd.config import operator_files
from batchd.control import CheckLine
from batchd.spool import claims
from batchd.spool.outbox import OwnOutboxes, StrangeOutboxError

_NO_ROOM = {
    "inbox": "no file can be dropped",
    "outbox": "no task is started",
    "state": "tasks may wait at their end, and orders are refused",
}

#: A folder that is not there, or that this user cannot see: said with what is around it.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP}


def silent(settings: config.Config) -> Iterator[CheckLine]:
    """Yield a line for each folder and file of the configuration that does not answer,
    as on a disk over a lost network.
    """
    places = [*operator_files.kept(settings, settings.file), *operator_files.exposed(settings)]
    hanging = silent_paths.among(place.path for place in places)
    for place in places:
        if place.path in hanging:
            what = place.key.removeprefix("[paths] ")
            yield CheckLine("failed", what, f"{place.path} does not answer", silent_paths.FIX)


def lines(settings: config.Config) -> Iterator[CheckLine]:
    """Yield a line for each folder. Blocks."""
    paths = settings.paths
    yield _folder("inbox", Path(paths.inbox), free_room.INBOX)
    yield _folder("outbox", Path(paths.outbox), free_room.OUTBOX)
    try:
        state = Path(paths.state)
        OwnOutboxes(state, claims.noted(state)).look(paths.outbox)
    except StrangeOutboxError as error:
        yield CheckLine("failed", "outbox", f"{paths.outbox}: {error.strerror}", error.fix)
    except OSError:
        pass  # the line above says it
    yield _folder("state", Path(paths.state), free_room.ENDS)
    root = settings.workspace.root
    if not Path(root).is_dir():
        yield CheckLine("failed", "workspace", f"{root} is not a directory", "set [workspace] root")


def _folder(name: str, path: Path, needed: free_room.NeededRoom) -> CheckLine:
    if problem := _unreachable(path):
        fix = f"put the folder back, with its disk mounted, or set [paths] {name}"
        return CheckLine("failed", name, f"{path}: {problem}", fix)
    # What is missing is made at the start, where its parent lets us.
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if problem := _unfit(path, there):
        return CheckLine("failed", name, problem, _fix(name, path, there))
    if missing := free_room.found(str(there)).missing(needed):
        problem = f"{path}: {missing.why}; until then {_NO_ROOM[name]}"
        return CheckLine("failed", name, problem, missing.fix)
    return CheckLine("ok", name, f"{path}{'' if there == path else ' (will be made)'}")


def _unreachable(path: Path) -> str:
    """Return why the system does not even say whether a folder is there,
    as of a mount whose server is gone; empty: it does.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _MISSING:
            return error.strerror or str(error)
    return ""


def _unfit(path: Path, there: Path) -> str:
    """Return why a folder cannot be used, or made, with this process's rights;
    empty: it can. ``there``: the nearest that exists, of it and those above.
    """
    if not there.is_dir():
        leads = "is a link that leads nowhere" if there.is_symlink() else "is not a directory"
        return f"{there} {leads}" + ("" if there == path else f", so {path} cannot be made")
    if not os.access(there, os.W_OK | os.X_OK):
        still = ": its disk is mounted read-only" if free_room.read_only(str(there)) else ""
        return f"{there} cannot be written{still}" + (
            "" if there == path else f", so {path} cannot be made"
        )
    if there != path:
        try:
            # Only a trial shows what a mode does not, as in /proc.
            Path(tempfile.mkdtemp(prefix=".batchd-check-", dir=there)).rmdir()
        except OSError as error:
            return f"{path} cannot be made in {there}: {error.strerror}"
    return ""


def _fix(name: str, path: Path, there: Path) -> str:
    """Return what the user can do about a folder that is unfit,
    in the words of a daemon that meets it, so that it is said once.
    """
    if there.is_dir() and free_room.read_only(str(there)):
        return free_room.MOUNT_WRITABLE
    if there == path and there.is_dir():
        return free_room.ALLOW_WRITING
    return f"make {path} a directory that this user may write, or set [paths] {name}"
