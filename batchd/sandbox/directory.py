"""A task's directory: opened so that no symbolic link can lead elsewhere,
and listed in the same way.

An agent may write anything into it while we look: links, FIFOs, trees as deep as it likes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TypeAlias

from batchd import free_room, trees
from batchd.errors import FolderError, SandboxError
from batchd.records.tasks import FileChanges, FileStamp
from batchd.sandbox.command_user import CommandUser, as_root
from batchd.sandbox.resource_shortage import SHORTAGE_ERRNOS

#: The files of a directory, by path, as ``files`` finds them.
FileListing: TypeAlias = Mapping[str, FileStamp] | None

_SYS_OPENAT2 = 437  # on all processors
_AT_FDCWD = -100
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
#: For what is only looked at, be it a link.
_LOOKED_AT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TO_SYNC = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Of more files their whole disk is synced.
_MAX_SYNCED = 1000
#: As many links as the kernel follows on one way.
LINKS = 40
#: What is not the same to each command: a link there brings a check what the check itself has.
_VARYING = (["proc"], ["dev"], ["tmp"], ["var", "tmp"], ["run"])
#: A directory with more entries is not looked through for such links.
_MAX_LOOKED_AT = 1_000_000
_FRESH_MODE = 0o755
#: Why a folder that was there is not:
#: it was removed, is something else, or another file system lies there.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})
#: Folders that tools fill: of no interest to a user who asks what a task changed.
SKIPPED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        "node_modules",
        ".venv",
        "venv",
        "__pycache__",
        ".cache",
        ".npm",
        ".tox",
    }
    | {".mypy_cache", ".pytest_cache", ".ruff_cache"}
)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(directory: int, path: str | bytes, resolve: int, flags: int = _FLAGS) -> int:
    """Open a directory, or what ``flags`` say. Raises ``OSError``."""
    how = struct.pack("=QQQ", flags, 0, resolve)
    for _ in range(16):
        # EAGAIN: something was renamed meanwhile,
        # so that the kernel does not know whether the path is safe.
        descriptor: int = _libc().syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        number = ctypes.get_errno()
        if descriptor >= 0 or number not in {errno.EAGAIN, errno.EINTR}:
            break
    if descriptor < 0:
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return descriptor


def opened(path: str) -> int:
    """Open the directory that a task works in; no part of its path may be a symbolic link.

    Raises ``SandboxError``.
    """
    try:
        return _openat2(_AT_FDCWD, path, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise SandboxError(
                f"{path}: a symbolic link is on the way to the task's directory"
            ) from error
        raise SandboxError(f"the task's directory cannot be opened: {error}") from error


def below(top: int, path: str, *, flags: int = _FLAGS) -> int:
    """Open what lies below a directory, itself for an empty path; no link counts.

    Raises ``OSError``.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
    return _openat2(top, path or ".", resolve, flags)


def status(top: int, path: str) -> os.stat_result:
    """Return what lies below a directory, a link as itself. Raises ``OSError``."""
    with trees.held(below(top, path, flags=_LOOKED_AT)) as there:
        return os.fstat(there)


def contents(top: int, path: str, most: int) -> bytes | None:
    """Return what stands in a file below a directory; None: it is no file of at most ``most``
    bytes, or none that the directory's owner may read, as far as its mode says.
    """
    with contextlib.suppress(OSError), open(below(top, path, flags=_READ), "rb", 0) as file:
        its, mine = os.fstat(file.fileno()), os.fstat(top).st_uid
        readable = stat.S_IRUSR if its.st_uid == mine else stat.S_IROTH
        if stat.S_ISREG(its.st_mode) and its.st_mode & readable and its.st_size <= most:
            return file.read(most)
    return None


def led(top: int, path: str) -> str | None:
    """Return where a path below a directory leads once other programs follow its links,
    absolute ones too: below it as well.

    None: elsewhere, or nowhere. By then something else may lie there:
    ``below`` opens it, and follows no link.
    """
    home = _parts(str(Path(f"/proc/self/fd/{top}").readlink()))
    try:
        here = _followed(top, home, path)
    except OSError:
        return None
    return "/".join(here[len(home) :]) if here[: len(home)] == home else None


def _followed(top: int, home: list[str], path: str, *, surely: bool = True) -> list[str]:
    """Return where a path below a directory leads for programs that find that at ``home``.

    Raises ``OSError`` for more links than the kernel follows and, where it must ``surely`` be
    there, for what is not; else the rest of the path stands for itself, as behind what varies.
    """
    here, ahead, links = [*home], _parts(path), 0
    while ahead:
        name = ahead.pop(0)
        if name == "..":
            del here[-1:]
            continue
        try:
            target = None if not surely and _varies(here, home) else _link(top, home, here, name)
        except OSError as error:
            if surely or error.errno in SHORTAGE_ERRNOS:
                raise
            target = None
        if target is None:
            here.append(name)
            continue
        links += 1
        if links > LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            here = []
        ahead[:0] = _parts(target)
    return here


def _varies(here: list[str], home: list[str]) -> bool:
    """Whether a place is not the same to one command and to the next."""
    return here[: len(home)] != home and any(here[: len(top)] == top for top in _VARYING)


def leading_out(top: int, home: str) -> dict[str, str] | None:
    """Return the links below a directory that lead to what a command has for itself, by path,
    with what they hold; and, with nothing, folders that cannot be looked into.

    None: there are too many entries to look at. ``home``: where commands find the directory.
    Blocks. Raises ``OSError`` where no descriptor is left.
    """
    found: dict[str, str] = {}
    seen, waiting, inside = 0, [""], _parts(home)
    while waiting:
        folder = waiting.pop()
        for entry in _entries(top, folder, found):
            seen += 1
            if seen > _MAX_LOOKED_AT:
                return None
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_symlink() and not _beneath(top, path):
                try:
                    if _varies(_followed(top, inside, path, surely=False), inside):
                        target = _link(top, inside, [*inside, *_parts(folder)], entry.name)
                        found[shown(path)] = shown(target or "")
                except OSError as error:  # it is gone, or goes round in circles
                    if error.errno in SHORTAGE_ERRNOS:
                        raise
    return found


def _beneath(top: int, path: str) -> bool:
    """Whether the kernel, which follows links, finds something that lies below a directory."""
    with contextlib.suppress(OSError):
        os.close(_openat2(top, path, _RESOLVE_BENEATH, os.O_PATH | os.O_CLOEXEC))
        return True
    return False


def _link(top: int, home: list[str], here: list[str], name: str) -> str | None:
    """Return what a link in a folder holds; None: it is none. Raises ``OSError``.

    A model's link may lead anywhere: outside of the directory nothing is opened, and no file system
    entered but those on the way there, lest one that does not answer,
    or is mounted by being looked at, holds us up.
    """
    there = [*here, name]
    if here[: len(home)] == home:
        descriptor = below(top, "/".join(there[len(home) :]), flags=_LOOKED_AT)
    elif there == home[: len(there)]:
        return None
    else:
        resolve = _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
        flags = os.O_DIRECTORY | _LOOKED_AT
        with trees.held(_openat2(_AT_FDCWD, "/" + "/".join(here), resolve, flags)) as above:
            descriptor = _openat2(above, name, resolve | _RESOLVE_NO_XDEV, _LOOKED_AT)
    with trees.held(descriptor):
        found = stat.S_ISLNK(os.fstat(descriptor).st_mode)
        return os.readlink("", dir_fd=descriptor) if found else None


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def fresh(path: str, owner: CommandUser) -> tuple[int, bool]:
    """Make a task's own directory where it is not there yet, and open it;
    as root it goes to ``owner``.

    Returns whether it was made, too. Raises ``SandboxError``, and ``FolderError`` where the folder
    above takes none. What lies above it is batchd's own:
    no agent writes there, and links in it are the user's.
    """
    parent, name = os.path.split(path)
    with contextlib.ExitStack() as undo, _refused("the task's directory cannot be made"):
        with contextlib.suppress(FileExistsError):
            Path(parent).mkdir(parents=True)
        above = os.open(parent, _FLAGS)
        undo.callback(os.close, above)
        made = True
        try:
            os.mkdir(name, _FRESH_MODE, dir_fd=above)
        except FileExistsError:
            made = False
        try:
            directory = _openat2(above, name, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be made: {error}") from error
    try:
        with _refused(f"the task's directory cannot be given to {owner.name}"):
            if as_root() and os.fstat(directory).st_uid == 0:
                os.fchown(directory, owner.uid, owner.gid)
    except FolderError:
        os.close(directory)
        raise
    return directory, made


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Take an ``OSError`` for a ``FolderError``."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{what}: {error}") from error


def files(directory: int, limit: int, seconds: float) -> dict[str, FileStamp] | None:
    """Return the files below a directory by path;
    None where there are more than ``limit``, or time or descriptors run out.

    Links are listed, never followed; FIFOs and the like are not. Folders that tools fill, and those
    that cannot be read or lie deeper than a path can be long, are left out.
    Names that are not UTF-8 are escaped.
    """
    try:
        return _listed(directory, limit, time.monotonic() + seconds)
    except OSError:
        return None  # half a list would say that the other half was deleted


def _listed(directory: int, limit: int, deadline: float) -> dict[str, FileStamp] | None:
    found: dict[str, FileStamp] = {}
    waiting = [""]
    seen = 0
    while waiting:
        folder = waiting.pop()
        for entry in _entries(directory, folder):
            seen += 1
            if seen > limit or (seen % 16 == 0 and time.monotonic() > deadline):
                return None
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED:
                    waiting.append(path)
                continue
            with contextlib.suppress(OSError):
                its = entry.stat(follow_symlinks=False)
                mode = its.st_mode
                if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    found[shown(path)] = (
                        its.st_size,
                        its.st_mtime_ns,
                        its.st_ctime_ns,
                        its.st_ino,
                        mode,
                        its.st_nlink,
                    )
    return found


def _entries(
    directory: int, folder: str, closed: dict[str, str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """Give what lies in a folder below ``directory``; nothing where it cannot be read,
    which is noted in ``closed`` unless it is gone, or another file system.

    Raises ``OSError`` where there is no descriptor left to read it by.
    """
    try:
        descriptor = below(directory, folder)
    except OSError as error:
        if error.errno in SHORTAGE_ERRNOS:
            raise
        if closed is not None and error.errno not in GONE:
            closed[shown(folder)] = ""
        return
    try:
        with os.scandir(descriptor) as entries:
            yield from entries
    except OSError as error:
        if error.errno in SHORTAGE_ERRNOS:
            raise
    finally:
        os.close(descriptor)


def sync(top: int, before: FileListing, after: FileListing) -> bool:
    """Make durable what has changed below a directory: files, and the folders above each.

    Whether that is so: not where they are too many, or cannot be opened by their names, which may
    be escaped, masked, or closed to us. No link is followed.
    Raises ``OSError`` where the disk has not taken it.
    """
    if before is None or after is None:
        return False
    changes = FileChanges.between(before, after)
    changed = (*changes.created, *changes.modified, *changes.deleted)
    if len(changed) > _MAX_SYNCED:
        return False
    files = [path for path in changed if path in after and stat.S_ISREG(after[path][4])]
    folders = {str(above): None for path in changed for above in PurePath(path).parents}
    for path in (*files, *folders):
        try:
            with trees.held(below(top, path, flags=_TO_SYNC)) as descriptor:
                os.fsync(descriptor)
        except OSError as error:
            if free_room.refused(error):
                raise
            if path in after or error.errno != errno.ENOENT:  # a folder went with all in it
                return False
    return True


def shown(path: str) -> str:
    """Return a path as it is shown: names that are not UTF-8 are escaped."""
    if path.isascii():
        return path
    return os.fsencode(path).decode("utf-8", "backslashreplace")
