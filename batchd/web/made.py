"""What lies in files: a batch's report and its results, and what a task has made: its answer, its
patch, its files. Whatever a task's files hold, none of it is run.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders, trees
from batchd.errors import SandboxError, UnknownNameError
from batchd.formats import ResultV1
from batchd.observe import changes
from batchd.records import Ref
from batchd.spool import outbox
from batchd.store.queries import StoreReader
from batchd.web import pages

#: Bytes of a file that are sent at a time.
_CHUNK = 1 << 18


def published(file: Path) -> Iterator[bytes] | None:
    """Return a file of a batch's folder as it lies there; None: it does not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(file, trees.OPEN_FILE)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return _chunks(descriptor)
        os.close(descriptor)
    return None


def _chunks(descriptor: int) -> Iterator[bytes]:
    with open(descriptor, "rb") as file:
        yield from iter(lambda: file.read(_CHUNK), b"")


#: Characters of an answer; the result's file has the rest.
_ANSWER = 40_000
#: Files that are listed, and bytes:
#: of a patch, of a text and an image that are shown, of a file that is sent.
_FILES, _PATCH, _TEXT, _IMAGE, _SENT = 500, 8 << 20, 256 << 10, 4 << 20, 256 << 20
#: What browsers draw and run nothing of, by how it begins: an SVG is a text.
_IMAGES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def listed(reader: StoreReader, ref: Ref) -> dict[str, Any]:
    """Return a task's answer, the last verdict on it, its patch, and the files that it has made.

    Raises ``StoreError``.
    """
    result = _result(reader, ref)
    if result is None:
        return {"patch": None, "files": [], "more": 0}
    return outcome(result, _folder(reader, ref)) | {"apply": offered(reader, ref)}


def outcome(
    result: ResultV1,
    folder: Path,
    *,
    answer: int = _ANSWER,
    patch: int = _PATCH,
    names: int = _FILES,
) -> dict[str, Any]:
    """Return what came of a task, as its result in a batch's folder has it.

    ``answer``: characters at most, ``patch``: bytes, ``names``: files of each kind.
    """
    text, verdict, about = result.answer[:answer], result.evaluation, result.patch
    data = outbox.whole_patch(folder, result.task, about.sha256) if about else None
    there = list(_made(result))
    gone = result.files.deleted if result.files else ()
    return {
        "answer": text,
        "answer_tree": pages.tree(text) if text else None,
        "answer_cut": len(result.answer) - len(text),
        "verdict": verdict
        and {
            "by": verdict.by,
            "done": verdict.done,
            "text": verdict.feedback,
            "first": verdict.already_true is True,
            "score": result.score,
            "flaky": result.flaky,
        },
        "patch": changes.shown(result, data, patch),
        "files": [{"path": path, "change": change} for change, path in there[:names]],
        "more": max(0, len(there) - names),
        "deleted": gone[:names],
        "listed": result.files is not None,
    }


class PatchOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A patch that can be put into the repository that it is of."""

    #: ``BATCH/TASK``.
    task: str
    sha256: str
    #: The repository, or the directory; of a URL that.
    into: str
    #: The branch that it goes to, which is a new one.
    branch: str
    #: What puts it there: a command to type.
    command: str
    #: Whether this process may do that: the repository is its user's.
    ours: bool


def offered(reader: StoreReader, ref: Ref) -> PatchOffer | None:
    """Return what can be done with a task's patch; None: it has none that is whole, and shown."""
    result = _result(reader, ref)
    if result is None or result.workspace is None or not changes.whole(result):
        return None
    assert result.patch is not None, "it is whole"
    source, branch = result.workspace.source, f"batchd/{ref}"
    command, ours = shlex.join(("batchd", "apply", str(ref), "--branch", branch)), False
    if not source.startswith("/"):
        command += " --into DIR"
    else:
        into = Path(source)
        with contextlib.suppress(OSError):
            inner = [each for each in (into / ".git", into / "objects") if each.is_dir()]
            owners = {each.stat().st_uid for each in (into, *inner)}
            copied = result.workspace.kind == "copy"  # it begins at no commit
            # Of a pruned task only the outbox says where its patch belongs.
            known = bool(reader.result(ref)) and os.path.realpath(into) == source
            ours = known and bool(inner) and not copied and owners == {os.geteuid()} != {0}
            if not inner or copied or 0 in owners:  # … or one that no command of ours may touch
                patch = _folder(reader, ref) / outbox.patch_name(ref.task)
                command = changes.by_hand(into, patch)
    return PatchOffer(
        task=str(ref),
        sha256=result.patch.sha256,
        into=source,
        branch=branch,
        command=command,
        ours=ours,
    )


def preview(reader: StoreReader, ref: Ref, path: str) -> dict[str, Any]:
    """Return what there is to see of a file:
    its text, an image as an address that holds it, or nothing; and its size.

    Raises ``UnknownNameError`` for one that the task has not made, or that is gone.
    """
    data, size = _read(reader, ref, path, _IMAGE)
    kind = next((kind for start, kind in _IMAGES.items() if data.startswith(start)), "")
    if kind and size <= _IMAGE:
        image = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return {"size": size, "image": image}
    part = data[:_TEXT]
    if b"\0" in part:
        return {"size": size}
    return {"size": size, "text": part.decode("utf-8", "replace"), "cut": max(0, size - len(part))}


def content(reader: StoreReader, ref: Ref, path: str) -> bytes:
    """Return a file as it is.

    Raises ``UnknownNameError`` for one that the task has not made, or that is gone or too large.
    """
    _, size = _read(reader, ref, path, 0)
    if size > _SENT:
        raise UnknownNameError(f"{path} is too large to be sent: it has {size:,} bytes")
    return _read(reader, ref, path, _SENT)[0]


def _read(reader: StoreReader, ref: Ref, path: str, most: int) -> tuple[bytes, int]:
    """Return the beginning of a file, and its size. No link is followed on the way to it."""
    from batchd.sandbox import directory  # most who look at a page look at no file

    result = _result(reader, ref)
    if result is None or path not in {name for _, name in _made(result)}:
        raise UnknownNameError(f"{ref} has made no file {path}")
    with contextlib.suppress(OSError, SandboxError):
        top = directory.opened(result.dir)
        try:
            file = directory.below(top, path, flags=trees.OPEN_FILE)
        finally:
            os.close(top)
        with open(file, "rb") as source:
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode):
                return source.read(most), found.st_size
    raise UnknownNameError(f"{path} is gone from {result.dir}, or is no longer a file")


def _made(result: ResultV1) -> Iterator[tuple[str, str]]:
    """Yield what the task has made of each file that is there, and its path."""
    if result.files is not None:
        yield from (("created", path) for path in result.files.created)
        yield from (("modified", path) for path in result.files.modified)


def _folder(reader: StoreReader, ref: Ref) -> Path:
    return Path(reader.batch(ref.batch).batch.folder)


def _result(reader: StoreReader, ref: Ref) -> ResultV1 | None:
    """Return a task's result; of a pruned one, as it lies in the outbox.

    None: there is none (any more).
    """
    if not reader.task(ref).status.final:
        return None
    if text := reader.result(ref):
        return decoders.decode(text, ResultV1)
    with contextlib.suppress(OSError, msgspec.ValidationError):
        return decoders.convert(outbox.result(_folder(reader, ref), ref.task), ResultV1)
    return None
