"""Claims: a file becomes ours by a rename to ``ULID-NAME`` in a folder of ours.

That folder is ``claimed`` in the state directory, where no one else can reach. Only where no rename
leads there, because inbox and state lie on different file systems, is it ``.claimed`` in the inbox;
then the inbox must be one in which no one can take away what is another's.
Earlier versions always claimed there: what they left is worked on from there.

The ULIDs of one state directory carry its mark, so that daemons with different ones can share an
inbox: each takes up again what it had claimed itself, and leaves the others' claims to them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from batchd import trees
from batchd.spool import files
from batchd.spool.ulid import LENGTH, MARK_BITS, PATTERN, Ulids, mark_of, time_of, ulid

#: Left alone: programs that write such a name rename it when done.
_UNFINISHED = ("~", ".tmp", ".part", ".swp")
#: What changes with a file: its inode, size, and times of data and status.
Signature = tuple[int, int, int, int]
#: Holds the mark, in the state directory.
_MARK_FILE = "claims"
#: Where claims lie, in the state directory and in an inbox on another file system.
_OURS, _THERE = "claimed", ".claimed"
#: Bytes of a name that are kept behind a ULID; a file name has 255.
_NAME_BYTES = 200


def ignorable(name: str) -> bool:
    """Whether a name says that it is none of our business."""
    return name.startswith(".") or name.endswith(_UNFINISHED)


def signature(status: os.stat_result) -> Signature:
    """Return what is different once a file has been touched or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that is ours."""

    #: Unique, and sorts by the time of the claim.
    ulid: str
    #: The name it was dropped under; may hold newlines, and bytes that are not UTF-8 as surrogates.
    name: str
    #: Where it lies now.
    path: Path

    @property
    def received_at(self) -> float:
        """Seconds since the epoch."""
        return time_of(self.ulid)


def lying(inbox: Path, state: Path) -> tuple[list[Claim], list[Claim]]:
    """Return what lies claimed: ours, of an earlier run, oldest first; and other daemons'.

    Only reads. Raises ``OSError``.
    """
    own = noted(state)
    ours, others = _in(state / _OURS), list[Claim]()
    for claim in _in(inbox / _THERE):
        (ours if mark_of(claim.ulid) == own else others).append(claim)
    return sorted(ours, key=attrgetter("ulid")), sorted(others, key=attrgetter("ulid"))


def hand_over(state: Path, name: str, data: bytes, claim: str = "") -> Claim:
    """Put a file where claims lie, durably, as if it had been claimed: for whose it is.

    ``claim``: the ULID to use; empty: a new one. Raises ``OSError``.
    """
    folder = state / _OURS
    folder.mkdir(mode=0o700, exist_ok=True)
    claim = claim or Ulids(mark(state))()
    path = folder / f"{claim}-{_short(name)}"
    files.write_whole(path, data, replace=False, mode=0o600, follow=False)
    return Claim(claim, name, path)


def find(state: Path, claim: str) -> Claim | None:
    """Return what lies in the state directory under this ULID."""
    return next((each for each in _in(state / _OURS) if each.ulid == claim), None)


def waiting(inbox: Path, state: Path) -> list[str]:
    """Return the names of files that wait to be taken up, claimed ones first; only reads.

    Raises ``OSError``.
    """
    claimed, _ = lying(inbox, state)
    with os.scandir(inbox) as entries:
        files = (each for each in entries if each.is_file(follow_symlinks=False))
        dropped = sorted(each.name for each in files if not ignorable(each.name))
    return [*(claim.name for claim in claimed), *dropped]


def _in(folder: Path) -> list[Claim]:
    """Return the claims in a folder; none where it is not one that batchd has made.

    What is no file took the place of one in the instant of its claim,
    and could not go back before a crash: no claim.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return []
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return [
        Claim(name[:LENGTH], name[LENGTH + 1 :], folder / name)
        for name in names
        if PATTERN.fullmatch(name[:LENGTH]) and name[LENGTH : LENGTH + 1] == "-"
    ]


class Claimer:
    """The claimer of one inbox's files for one state directory."""

    def __init__(self, inbox: Path, state: Path) -> None:
        self._path = inbox
        self._state = state
        #: The inbox and the folder for claims, open; and where the latter lies.
        self._inbox = self._folder = -1
        self._where = state / _OURS
        self._ulids: Callable[[], str] | None = None
        #: Renamed, but not known to be durable yet.
        self._fresh: list[Claim] = []

    def enter(self, inbox: int) -> None:
        """Claim from an inbox that is open from now on.

        Raises ``OSError``, with the fix where that is not safe.
        """
        ours = self._state / _OURS
        # Not the state directory itself:
        # one in the place of what was moved away would keep that from being moved back.
        with contextlib.suppress(FileExistsError):
            ours.mkdir(mode=0o700)
            trees.sync(self._state)
        with trees.held(files.enter(ours)) as found:
            leads = _leads(inbox, found)
            folder = os.dup(found) if leads else self._there(inbox)
        self.leave()
        self._inbox, self._folder = inbox, folder
        self._where = ours if leads else self._path / _THERE

    def stands(self) -> bool:
        """Whether the folder for claims is still the one that its path leads to,
        and no one else can touch it.
        """
        if self._folder < 0:
            return False
        try:
            there = self._where.lstat()
        except OSError:
            return False
        apart = self._where.parent != self._path or files.keeps_apart(self._inbox)
        return apart and os.path.samestat(os.fstat(self._folder), there)

    def leave(self) -> None:
        """Let go of the folder for claims."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1

    def __len__(self) -> int:
        return len(self._fresh)

    def take(self, name: str, look: Signature) -> None:
        """Claim a file that still looks like that; ``taken`` returns it, if no one was faster.

        Raises ``OSError``.
        """
        if self._ulids is None:
            self._ulids = Ulids(mark(self._state))
        claim = self._ulids()
        target = f"{claim}-{_short(name)}"
        try:
            # Another file of the same name may have taken its place since:
            # that one has not settled.
            if signature(os.lstat(name, dir_fd=self._inbox)) != look:
                return
            os.rename(name, target, src_dir_fd=self._inbox, dst_dir_fd=self._folder)
        except FileNotFoundError:
            return  # another claimer was faster, or its owner took it back
        if self._same(target, look) or self._stays(target, name):
            self._fresh.append(Claim(claim, name, self._where / target))

    def taken(self) -> list[Claim]:
        """Return what was claimed since the last time, once that is durable. Raises ``OSError``."""
        if self._fresh:
            # First: after a power cut, a file must not be in the inbox and in the store.
            os.fsync(self._folder)
            os.fsync(self._inbox)
        fresh, self._fresh = self._fresh, []
        return fresh

    def _same(self, target: str, look: Signature) -> bool:
        """Whether what was claimed is the file that had settled,
        or is gone already: reading it shows that.
        """
        try:
            found = os.lstat(target, dir_fd=self._folder)
        except FileNotFoundError:
            return True
        # A rename changes the last of the four, the time of its status.
        return stat.S_ISREG(found.st_mode) and signature(found)[:3] == look[:3]

    def _stays(self, target: str, name: str) -> bool:
        """Put back what took a file's place in the instant of its claim;
        True for a file that cannot be.
        """
        try:
            files.rename_new(target, name, self._folder, self._inbox)
        except FileExistsError:
            mode = os.lstat(target, dir_fd=self._folder).st_mode
            if stat.S_ISREG(mode):
                return True
            # Who put a new file in the place of a link has done away with the link. A folder may
            # hold anything: it goes back under a name that is left alone.
            if stat.S_ISDIR(mode):
                files.rename_new(target, f".{target}", self._folder, self._inbox)
            else:
                os.unlink(target, dir_fd=self._folder)
        return False

    def _there(self, inbox: int) -> int:
        """Return the folder for claims in the inbox, which no one else can touch."""
        if not files.keeps_apart(inbox):
            why = (
                "others can write here, it is not sticky, and its claims cannot lie in [paths] state, which is on another "
                "file system: chmod +t the inbox, or put both on one"
            )
            raise OSError(errno.EPERM, why, str(self._path))
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                os.mkdir(_THERE, 0o700, dir_fd=inbox)
            try:
                there = files.inside(inbox, _THERE, self._path / _THERE)
            except NotADirectoryError:
                there = -1
            if there >= 0 and files.ours_alone(there):
                return there
            # Somebody else has put it there.
            os.rename(_THERE, f".not-of-batchd-{ulid()}", src_dir_fd=inbox, dst_dir_fd=inbox)
            if there >= 0:
                os.close(there)
        raise OSError(errno.EPERM, "somebody makes it again and again", str(self._path / _THERE))


def _leads(inbox: int, folder: int) -> bool:
    """Whether a rename leads from an inbox to a folder: whether both are of one mount.

    Raises ``OSError``.
    """
    probe = f".batchd-probe-{ulid()}"
    os.close(
        os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=inbox)
    )
    try:
        os.rename(probe, probe, src_dir_fd=inbox, dst_dir_fd=folder)
    except OSError as error:
        os.unlink(probe, dir_fd=inbox)
        if error.errno == errno.EXDEV:
            return False
        raise
    os.unlink(probe, dir_fd=folder)
    return True


def noted(state: Path) -> int | None:
    """Return the mark of a state directory; None: it has none yet. Raises ``OSError``."""
    try:
        return int((state / _MARK_FILE).read_bytes(), 16) & (1 << MARK_BITS) - 1
    except (FileNotFoundError, ValueError):
        return None


def mark(state: Path) -> int:
    """Return the mark that the ULIDs of a state directory's claims carry, and its outboxes;
    one that has none gets it. Raises ``OSError``.
    """
    found = noted(state)
    if found is None:
        found = int.from_bytes(os.urandom(MARK_BITS // 8), "big")
        files.make_folder(state, 0o700)
        _note(state, found)
    return found


def keep_mark(state: Path, found: int) -> None:
    """Note the mark again where it was deleted with all that lay beside it: what the daemon saves
    of that finds the same outbox.
    """
    with contextlib.suppress(OSError):  # the whole directory is gone, or its disk is
        if noted(state) is None:
            _note(state, found)


def _note(state: Path, found: int) -> None:
    files.write_whole(state / _MARK_FILE, b"%x\n" % found, replace=True, mode=0o600)


def _short(name: str) -> str:
    """Return a name with room for a ULID in front; its ending is kept."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME_BYTES:
        return name
    stem, ending = os.path.splitext(raw)
    ending = ending[:20]
    return os.fsdecode(stem[: _NAME_BYTES - len(ending)] + ending)
