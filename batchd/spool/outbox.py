"""The outbox: what appears there is always whole, and durable before anything reports it.

A batch's folder is never a link: what others might put in its place is not written through.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from batchd import free_room, trees
from batchd.log import escape
from batchd.records import Batch, BatchNaming, Patch
from batchd.spool import files

#: The file that is written last of all.
SUMMARY = "summary.json"
#: In the outbox itself, where no batch has these names: how the daemon stands;
STATUS = "status.json"
#: and whose outbox it is. Without this file its disk may not be mounted.
SPOOL = ".batchd"

_NAME_BYTES = 100
_TRIAL_BYTES = 64 << 10
#: No result, patch or summary of ours is larger.
_MAX_BYTES = 256 << 20
#: Begins the name of the mark in a folder that says whose it is,
#: and of a folder that has no name yet.
_MARK = ".claim-"
#: Bytes that are read of the file that says whose an outbox is.
_MAX_MARK_BYTES = 64
#: What a rename answers where the name is taken, by a folder too or by a file.
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class StrangeOutboxError(OSError):
    """An outbox is not, or no more, this spool's: what is written there may never be seen."""

    def __init__(self, folder: str, why: str, fix: str) -> None:
        # Workers try again what fails with this number.
        super().__init__(errno.EIO, why, folder)
        #: What the user can do.
        self.fix = fix


class OwnOutboxes:
    """The outboxes of one spool, each with the spool's mark in it. For any thread.

    A mark has a random part, which is new each time a folder gets one: what was marked at a mount
    point before its disk was there is an older one, and not taken for the disk.
    """

    def __init__(self, state: Path, mark: int | None) -> None:
        """Take those of a state directory, and its mark; None: it has none, nor an outbox.

        Raises ``OSError``.
        """
        self._mark = "" if mark is None else f"{mark:x} "
        #: The last mark of each: one of them without it is no new one.
        self._list = state / "outboxes"
        self._known = dict[str, str]()
        self._lock = threading.Lock()
        with contextlib.suppress(FileNotFoundError):
            try:
                self._known.update(json.loads(self._list.read_bytes()))
            except (ValueError, TypeError):
                why = "it is damaged: where the outbox is the right one, remove this file"
                raise OSError(errno.EIO, why, str(self._list)) from None

    def insist(self, folder: str) -> None:
        """Return if an outbox is this spool's, which a new one becomes.

        Raises ``StrangeOutboxError``, and ``OSError`` where that cannot be said.
        """
        new = f"{self._mark}{os.urandom(4).hex()}".encode()
        while not (there := self.look(folder)):
            files.make_folder(Path(folder))
            with contextlib.suppress(FileExistsError):  # another daemon was faster
                path, replace = Path(folder, SPOOL), there is not None
                files.write_whole(path, new, replace=replace, mode=0o644)
            if replace:
                self.forget(folder)
        with self._lock:
            if self._known.get(folder) != there:
                text = json.dumps(self._known | {folder: there}, sort_keys=True).encode()
                files.write_whole(self._list, text, replace=True, mode=0o600)
                self._known[folder] = there

    def look(self, folder: str) -> str | None:
        """Return the mark that an outbox bears; empty, or None: it gets ours next.

        Raises what ``insist`` raises.
        """
        path = f"{folder}/{SPOOL}"
        try:
            file = os.open(path, trees.OPEN_FILE)
        except FileNotFoundError:
            if folder not in self._known:
                return None
            why = f"{SPOOL}, by which batchd knows it, is missing there"
            use = f"mkdir -p {shlex.quote(folder)} && touch {shlex.quote(path)}"
            fix = f"mount its disk, or, to use what is there now: {use}"
            raise StrangeOutboxError(folder, why, fix) from None
        with trees.held(file):
            there = os.read(file, _MAX_MARK_BYTES).decode("ascii", "replace")
        use = f"if nothing else writes there: truncate -s0 {shlex.quote(path)}"
        if there and not (self._mark and there.startswith(self._mark)):
            why = f"its {SPOOL} says that it is the outbox of another state directory"
            fix = f"set [paths] outbox to another folder, or, {use}"
            raise StrangeOutboxError(folder, why, fix)
        if there and self._known.get(folder, there) != there:
            why = (
                f"its {SPOOL} is an older one: what was there last is not mounted, or was replaced"
            )
            raise StrangeOutboxError(folder, why, f"mount its disk, or, {use}")
        return there

    def forget(self, folder: str) -> None:
        """Take an outbox for a new one when it is seen next."""
        with self._lock:
            self._known.pop(folder, None)


def reserve(batch: Batch, name: str) -> BatchNaming:
    """Make a batch's folder under a name that no one has; return whose the name is.

    It is the batch's too where an earlier try made it, before a crash perhaps: the folder bears the
    mark of its claim from its first moment on. Raises ``OSError``.
    """
    mark, folder = f"{_MARK}{batch.claim}", f"{batch.outbox}/{name}"
    if os.path.lexists(folder):
        return BatchNaming.OURS if os.path.lexists(f"{folder}/{mark}") else _others(folder)
    nameless = f"{batch.outbox}/{mark}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(nameless)  # by the hundred thousand
    except FileNotFoundError:
        files.make_folder(Path(nameless))
    os.close(os.open(f"{nameless}/{mark}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    try:
        files.rename_new(nameless, folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return _others(folder)  # another was faster; the folder gets the next name
    return BatchNaming.OURS


def give_back(outbox: str, name: str, claim: str) -> None:
    """Remove a batch's folder that was reserved for a claim and holds nothing else.

    Raises ``OSError``.
    """
    folder, mark = f"{outbox}/{name}", f"{_MARK}{claim}"
    try:
        if os.listdir(folder) != [mark]:
            return
        # No one else takes the name meanwhile: a folder without a mark is taken for good.
        os.unlink(f"{folder}/{mark}")
        os.rmdir(folder)
    except FileNotFoundError:
        return


def reserved(outbox: Path) -> Iterator[tuple[str, str]]:
    """Yield folders in an outbox that hold nothing but a claim's mark:
    their names, and the claims.
    """
    for name in sorted(os.listdir(outbox)):
        with contextlib.suppress(OSError):  # a file, or a folder that another keeps to themselves
            match os.listdir(f"{outbox}/{name}"):
                case [mark] if mark.startswith(_MARK):
                    yield name, mark.removeprefix(_MARK)


def _others(folder: str) -> BatchNaming:
    """Return whether a name that another has is taken for good,
    or waits for a claim that has no end yet.
    """
    try:
        waits = any(name.startswith(_MARK) for name in os.listdir(folder))
    except OSError:
        return BatchNaming.TAKEN
    return BatchNaming.PENDING if waits else BatchNaming.TAKEN


def publish(
    path: Path, data: bytes | Callable[[BinaryIO], object], *, replace: bool, mode: int = 0o666
) -> None:
    """Write a file that appears whole, its folder made where it is missing.

    ``data``: what it holds, or what writes that piece by piece. Raises ``FileExistsError`` where
    it is there and must not be replaced, ``OSError`` where it cannot be written.
    """
    files.make_folder(path.parent)
    if path.name == SUMMARY and not path.parent.is_symlink():
        # After it nothing is written, and a collector may take the folder away.
        files.sweep(path.parent)
        for mark in path.parent.glob(f"{_MARK}*"):
            mark.unlink(missing_ok=True)
    files.write_whole(path, data, replace=replace, mode=mode, follow=False)


def publish_status(outbox: str, data: bytes, *, sweep: bool) -> None:
    """Write how the daemon stands, for whom the outbox lets read it; not where everybody may write
    there, who could put anything in its place. An outbox that is missing is not made.

    ``sweep``: remove first what a writer that was killed has left. Raises ``OSError``.
    """
    found = os.stat(outbox)
    if found.st_mode & stat.S_IWOTH:
        return
    if sweep:
        files.sweep(Path(outbox), STATUS)

    def fill(file: BinaryIO) -> None:
        with contextlib.suppress(OSError):  # a group that this user is not in
            os.fchown(file.fileno(), -1, found.st_gid)
        os.fchmod(file.fileno(), 0o600 | found.st_mode & 0o044)
        file.write(data)

    files.write_whole(Path(outbox, STATUS), fill, replace=True, mode=0o600)


def publish_task(folder: Path, task: str, transcript: str, result: str) -> bool:
    """Write what a task leaves: the result last, for it says where the transcript is;
    empty: it has none.

    Can be repeated. A whole result of the task that lies there already stays, whatever the new one
    says, for somebody may have read it: False is returned where they differ.
    Raises ``OSError`` where they cannot be written.
    """
    if _stays(folder, task, result):
        return False
    texts = {f"{task}.jsonl": transcript, f"{task}.json": result}
    files.make_folder(folder)
    files.write_together(folder, {name: text.encode() for name, text in texts.items() if text})
    return True


def publish_patch(folder: Path, task: str, patch: Patch) -> None:
    """Write a task's patch, before its result says so;
    one without changes takes away what an earlier try has left.

    Can be repeated. Where it is withheld, batchd's user alone may read it.
    Raises ``OSError`` where it cannot be written.
    """
    path = folder / patch_name(task)
    if patch.data:
        publish(path, patch.data, replace=True, mode=0o600 if patch.withheld else 0o666)
    else:
        path.unlink(missing_ok=True)


def patch_name(task: str) -> str:
    """Return the name of the file that holds a task's patch, beside its result."""
    return f"{task}.patch"


def whole_patch(folder: Path, task: str, sha256: str) -> bytes | None:
    """Return the patch of a task; None where it is gone, or is not the one with this hash."""
    try:
        data = files.content(folder / patch_name(task), _MAX_BYTES)
    except OSError:
        return None
    return data if data is not None and hashlib.sha256(data).hexdigest() == sha256 else None


def result(folder: Path, task: str) -> dict[str, Any] | None:
    """Return the result of a task that lies in its batch's folder; None: none of it does.

    Raises ``OSError``.
    """
    there = _value(folder / f"{task}.json")
    return there[0] if there and there[0].get("task") == task else None


def summary(batch: Batch) -> str | None:
    """Return the summary that lies in a batch's folder, whole; None: there is none of it."""
    there = _value(Path(batch.folder, SUMMARY))
    return there[1].decode() if there and there[0].get("batch") == batch.name else None


def _value(path: str | Path, folder: int | None = None) -> tuple[dict[str, Any], bytes] | None:
    """Return a published file as what it holds, and its bytes; None where none lies there, whole.

    Raises ``OSError``.

    Whatever else lies there is not ours, and is not read:
    a link, a device, a pipe, what no result is as large as.
    """
    try:
        if (data := files.content(path, _MAX_BYTES, dir_fd=folder)) is None:
            return None
        value = json.loads(data)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    ours = isinstance(value, dict) and str(value.get("schema", "")).startswith("batchd/")
    return (value, data) if ours else None


def publish_results(folder: Path, results: Mapping[str, str]) -> list[str]:
    """Write the results of many tasks that left nothing else;
    return those tasks whose other result stays.

    Like ``publish_task``, and for the same reason. Raises ``OSError``.
    """
    files.make_folder(folder)
    kept = {task for task, text in results.items() if _stays(folder, task, text)}
    new = {f"{task}.json": text.encode() for task, text in results.items() if task not in kept}
    files.write_many(folder, new)
    return sorted(kept)


def _stays(folder: Path, task: str, result: str) -> bool:
    """Whether a whole result of a task lies there already that is another one.

    Raises ``OSError``.
    """
    there = _value(folder / f"{task}.json")
    return there is not None and there[0].get("task") == task and there[1] != result.encode()


def publish_request(claimed: Path, batch: Batch) -> Path:
    """Move a claimed file into its batch's folder; return where it lies. Can be repeated.

    Raises ``FileNotFoundError`` where it lies neither here nor there.
    """
    target = Path(batch.folder, batch.request)
    files.make_folder(target.parent)
    files.move(claimed, target)
    return target


def publish_requests(moves: Sequence[tuple[Path, Batch]]) -> list[OSError | None]:
    """Do so for many, with one sync of the disk; return for each what went wrong.

    Raises ``OSError`` where that sync fails: then none of it is known to be durable.
    """
    outcomes: list[OSError | None] = []
    for claimed, batch in moves:
        try:
            # Not by `make_folder`, which would sync for each.
            with contextlib.suppress(FileExistsError):
                os.makedirs(batch.folder)  # by the hundred thousand
            files.move(claimed, Path(batch.folder, batch.request))
        except OSError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)
    moved = (batch for (_, batch), error in zip(moves, outcomes, strict=True) if error is None)
    for folder in {batch.outbox for batch in moved}:
        trees.sync(Path(folder))
    return outcomes


def ready(batch: Batch) -> bool:
    """Whether a batch's folder is there and takes files,
    as far as owner, mode, mount and free room show.
    """
    try:
        takes = os.access(batch.folder, os.W_OK | os.X_OK)
        return takes and not free_room.found(batch.folder).missing(free_room.OUTBOX)
    except OSError:
        return False


def try_out(folder: Path) -> None:
    """Make a folder where it is missing, and write into it.

    Raises ``OSError`` where it takes no files.
    """
    files.make_folder(folder)
    free_room.insist(str(folder), free_room.OUTBOX)
    # Only a write shows a quota, a disk that fails, and a mode that root may pass over.
    trial = folder / f".trial-{os.getpid()}-{threading.get_ident()}"
    try:
        files.write_whole(trial, bytes(_TRIAL_BYTES), replace=True)
    finally:
        trial.unlink(missing_ok=True)


def batch_name(filename: str) -> str:
    """Return the name that a batch gets from its file:
    letters, digits, _ and -, at most 100 bytes.
    """
    stem = unicodedata.normalize("NFC", Path(filename).stem)
    # Marks belong to the letters of many scripts; \w leaves them out.
    kept = "".join(c if c in "_-" or unicodedata.category(c)[0] in "LNM" else " " for c in stem)
    name = re.sub(r" +", "-", kept.strip(" -"))
    return name.encode()[:_NAME_BYTES].decode("utf-8", "ignore").rstrip("-") or "batch"


_REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """The folder of a published batch."""

    #: The outbox that it lies in.
    outbox: str
    #: The batch's, which is its own.
    name: str

    def size(self) -> int | None:
        """Return what it takes on disk, in bytes, as far as it can be read;
        None where it is not there.
        """
        path = f"{self.outbox}/{self.name}"
        try:
            return trees.size_at(path)
        except OSError:
            return 0 if os.path.lexists(path) else None

    def remove(self) -> str:
        """Take it away; return why it could not be, wholly; empty: it is gone.

        It must be a folder, with this batch's summary in it, or with no more than a report that was
        made afterwards: one that somebody put in its place is left alone.
        Links in it are removed, not followed. What is mounted in it is left alone.
        """
        shown = escape(f"{self.outbox}/{self.name}")
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            return f"{shown} is not the folder of a batch"
        try:
            outbox = os.open(self.outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{shown}: {error.strerror}"
        try:
            with trees.held(os.open(self.name, trees.OPEN, dir_fd=outbox)) as top:
                bare, there = os.listdir(top) == [_REPORT], _value(SUMMARY, top)
                if not (bare or (there and there[0].get("batch") == self.name)):
                    return f"{shown} is left alone: it does not hold the summary of {self.name}"
                # Its summary last:
                # with it, an interrupted removal is known for what it is, and can go on.
                trees.TreeRemoval(top, last=_REPORT if bare else SUMMARY).run()
            os.rmdir(self.name, dir_fd=outbox)
        except FileNotFoundError:
            return ""
        except NotADirectoryError:
            return f"{shown} is left alone: it is a link or a file"
        except OSError as error:
            where = f" ({escape(os.fsdecode(error.filename))})" if error.filename else ""
            return f"{shown} could not be removed: {error.strerror}{where}"
        finally:
            with contextlib.suppress(OSError):
                os.fsync(outbox)
            os.close(outbox)
        return ""
