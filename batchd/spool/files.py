"""Files that appear whole, and stay: the few system calls that both ends of the spool rest on.

A folder stays open: what is done in one is done there, whatever comes to bear its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from batchd import trees

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_counter = itertools.count()
#: Bytes of a name that are kept in that of its temporary file; a file name has 255.
_NAME_BYTES = 200


def content(path: str | Path, most: int, *, dir_fd: int | None = None) -> bytes | None:
    """Return what a regular file holds; None for anything else that has its name, a link too, and
    for what is larger than ``most`` bytes.

    Raises ``OSError`` where nothing has that name, or it cannot be read.
    """
    try:
        descriptor = os.open(path, trees.OPEN_FILE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            return None
        raise
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(found.st_mode) and found.st_size <= most else None


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and what is missing above it, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    trees.sync(folder.parent)


def write_whole(
    path: Path,
    data: bytes | Callable[[BinaryIO], object],
    *,
    replace: bool,
    mode: int = 0o666,
    follow: bool = True,
) -> None:
    """Write a file that appears under its name complete and durable, or not at all.

    ``data``: what it holds, or what writes that. ``follow``: its folder may be a link.
    Raises ``FileExistsError`` where it is there and must not be replaced.
    """
    with _durably(path.parent, follow=follow) as folder:
        _place(folder, path, data, replace=replace, mode=mode)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one folder, which is no link, in this order,
    each as ``write_whole`` does; they replace what is there.
    """
    with _durably(folder, follow=False) as descriptor:
        for name, data in contents.items():
            _place(descriptor, folder / name, data, replace=True, mode=0o666)


def write_many(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one folder, which is no link, each as ``write_whole`` does,
    with one sync of their disk for all.
    """
    with _durably(folder, follow=False) as descriptor:
        drafts = {name: _temporary(name) for name in contents}
        try:
            for name, data in contents.items():
                with _naming(folder / name), _draft(descriptor, drafts[name], 0o666) as file:
                    file.write(data)
            with _naming(folder):
                trees.sync_disk(descriptor)
                for name, temporary in drafts.items():
                    os.rename(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        except BaseException:
            for temporary in drafts.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=descriptor)
            raise


@contextlib.contextmanager
def _durably(path: Path, *, follow: bool) -> Iterator[int]:
    """Give a folder, open; what was renamed in it is durable when this ends.

    By its descriptor the folder is the same to the end, also when a collector moves it away the
    instant that a file appears: then it has it, and there is nothing to do again.
    """
    with trees.held(_opened(path, follow=follow)) as folder:
        yield folder
        with _naming(path):
            os.fsync(folder)


def _opened(folder: Path, *, follow: bool) -> int:
    links = 0 if follow else os.O_NOFOLLOW
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | links)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors name a path: a descriptor or a temporary name does not show which file it is."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _place(
    folder: int,
    path: Path,
    data: bytes | Callable[[BinaryIO], object],
    *,
    replace: bool,
    mode: int,
) -> None:
    """Write a file that appears in a folder under the name that ``path`` ends with,
    its contents on the disk.
    """
    temporary = _temporary(path.name)
    with _naming(path):
        try:
            with _draft(folder, temporary, mode) as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data(file)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                rename_new(temporary, path.name, folder, folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise


def _temporary(name: str) -> str:
    """Return a name beside ``name``: the process is in it,
    so that two writers of one file do not meet.
    """
    kept = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
    return f".{kept}.{os.getpid()}-{next(_counter)}.tmp"


def _draft(folder: int, name: str, mode: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=folder)
    return open(descriptor, "wb")


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what writers that were killed have left of a file, or of all, in a folder:
    to be asked for where no one else writes it any more.
    """
    for path in folder.glob(f".{name}.[0-9]*-[0-9]*.tmp"):
        path.unlink(missing_ok=True)


def rename_new(
    source: str,
    target: str,
    source_folder: int = _AT_FDCWD,
    target_folder: int = _AT_FDCWD,
) -> None:
    """Rename without replacing; relative paths are seen from open folders.

    Raises ``FileExistsError``.
    """
    call = getattr(trees.libc(), "renameat2", None)
    names = os.fsencode(source), os.fsencode(target)
    if call and not call(source_folder, names[0], target_folder, names[1], _RENAME_NOREPLACE):
        return
    number = ctypes.get_errno() if call else errno.ENOSYS
    if number not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(number, os.strerror(number), source, None, target)
    # The file system (NFS for one) cannot do it in one step.
    at = [None if folder == _AT_FDCWD else folder for folder in (source_folder, target_folder)]
    with contextlib.suppress(FileNotFoundError):
        os.stat(target, dir_fd=at[1], follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target, src_dir_fd=at[0], dst_dir_fd=at[1])


def move(source: Path, target: Path) -> None:
    """Move a file into a folder that is no link, across file systems too.

    Can be repeated: a finished move changes nothing.

    Within a file system it is not durable by itself: after a power cut the file is in one of the
    two places, and once anything else in the target's folder is durable, it is there.
    Raises ``FileNotFoundError`` where neither is there.
    """
    with _naming(target.parent):
        folder = _opened(target.parent, follow=False)
    with trees.held(folder):
        try:
            os.rename(source, target.name, dst_dir_fd=folder)
        except FileNotFoundError:
            os.stat(target.name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(source, target)
            source.unlink(missing_ok=True)
            trees.sync(source.parent)


def _copy(source: Path, target: Path) -> None:
    descriptor = os.open(source, trees.OPEN_FILE)
    with open(descriptor, "rb") as original:
        # What others may not read there they may not read here.
        mode = os.fstat(descriptor).st_mode & 0o666
        write_whole(
            target,
            lambda copy: shutil.copyfileobj(original, copy),
            replace=True,
            mode=mode,
            follow=False,
        )


#: As many links as the kernel follows on one way.
_LINKS = 40
#: What is said of another's link.
TURNED = "who could have it lead elsewhere"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: On the way, where we may pass and not look.
_PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(path: Path) -> int:
    """Return a folder's descriptor. Links on the way count where root or this user made them.

    Raises ``OSError``, with the fix where somebody else's link leads there.
    """
    ahead = [*Path(os.path.abspath(path)).parts[1:]]  # a link's .. is where it leads
    links = 0
    here = os.open("/", _PASSED)
    try:
        while ahead:
            name = ahead.pop(0)
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                _check(path, name, found.st_uid, links)
                target = Path(os.readlink(name, dir_fd=here))
                ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
                name = "/" if target.is_absolute() else "."
            further = os.open(name, _PASSED, dir_fd=here)
            os.close(here)
            here = further
        return os.open(".", _FOLDER, dir_fd=here)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(here)


def inside(parent: int, name: str, path: Path) -> int:
    """Return the descriptor of a folder in an open one: no link in its place.

    ``path`` is what errors name.
    """
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            why = "something else is in the place of this folder: remove it"
            raise OSError(errno.ENOTDIR, why, str(path)) from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def ours_alone(folder: int) -> bool:
    """Whether an open folder belongs to this user, and no one else can write into it."""
    found = os.fstat(folder)
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def keeps_apart(folder: int) -> bool:
    """Whether no one can take away from an open folder what is another's:
    they cannot write there, or it is sticky.
    """
    found = os.fstat(folder)
    return bool(found.st_mode & stat.S_ISVTX or not found.st_mode & 0o022)


def _check(path: Path, link: str, owner: int, links: int) -> None:
    """Raise ``OSError`` where a link on the way to ``path``,
    one of so many, is not to be followed.
    """
    if owner not in {0, os.geteuid()}:
        why = (
            f"{link} on the way there is a link of user {owner}, {TURNED}: name the folder "
            "itself, or let root or the daemon's own user make the link"
        )
        raise OSError(errno.EPERM, why, str(path))
    if links > _LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
