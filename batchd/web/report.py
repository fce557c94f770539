"""The report: the page of batches with its data within, one file that asks for nothing.

As a program it is the child that makes reports, one after another.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import resource
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders, free_room, processes, words
from batchd.pricing import Compared
from batchd.records import tasks
from batchd.spool import files, outbox
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow
from batchd.views import Kind, passages
from batchd.web import made, pages
from batchd.web.batch_page import whole
from batchd.web.gathering import TaskRecord

#: Characters of one passage, one prompt, one answer: a page is read by people.
_MAX_PASSAGE_CHARS = 40_000
#: The same without the transcript.
_MAX_SHORT_CHARS = 2_000
#: Characters of a whole transcript before it is deflated.
_MOST_PASSAGES = 2_000_000
#: Bytes of a patch, with the transcript and without.
_MOST_PATCH, _MOST_PATCH_SHORT = 1 << 20, 1 << 16
_LEVEL = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a report is made, whatever it is about."""

    #: Bytes of embedded transcripts.
    quota: int
    #: Models to compare the cost with, and what they cost.
    compare: Compared = ()


def make(reader: StoreReader, batches: Sequence[BatchRow], beside: Path, style: Style) -> bytes:
    """Return the report on batches, as a page that will lie in the folder ``beside``.

    Raises ``StoreError``.
    """
    blocks = DetailBlocks(style.quota)
    content = whole(reader, batches, compare=style.compare, beside=beside, embed=blocks.add)
    content["notes"] += blocks.notes()
    shell, look, script = pages.report()
    policy = (
        f"default-src 'none'; style-src {_hash(look)}; script-src {_hash(script)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    counts = ", ".join(f"{n:,} {status}" for status, n in content["counts"].items() if n)
    text = shell.substitute(
        title=html.escape(content["title"]),
        policy=html.escape(policy),
        style=look,
        script=script,
        data=embedded(content),
        blocks=blocks.text,
        plain=f"<p>{len(content['tasks']['id']):,} tasks: {counts}. All else needs JavaScript;"
        " results.jsonl has it too.</p>",
    )
    return text.encode("utf-8", "replace")


#: What could end a data block, or a line of JavaScript where an old parser looks.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


def embedded(content: Mapping[str, Any]) -> str:
    """Return the data as JSON that can stand within a script element, whatever texts are in it."""
    text = msgspec.json.encode(content).decode()
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class DetailBlocks:
    """Collects blocks until the quota is used up."""

    def __init__(self, quota: int) -> None:
        """``quota``: bytes of blocks with transcripts, as they stand in the page."""
        self._left = quota
        #: With less than this left, it is not worth to go on trying what fits.
        self._crumbs = quota // 50
        self._left_short = quota
        self._parts: list[str] = []
        self._at = 0
        #: Transcripts that would not fit.
        self.left_out = 0
        #: Tasks of which there is no block.
        self.bare = 0

    @property
    def text(self) -> str:
        """All blocks, one behind the other."""
        return "".join(self._parts)

    def add(self, task: TaskRecord) -> tuple[int, int]:
        """Embed a task as far as there is room;
        return where its block stands, and how long it is.
        """
        kept = task.row.started_at is not None and (
            not task.source.batch.pruned or bool(task.events)
        )
        if kept and self._left > 0:
            block = _packed(_details(task, in_full=True))
            if len(block) <= self._left:
                self._left -= len(block)
                return self._put(block)
            if self._left < self._crumbs:
                self._left = 0
        self.left_out += kept
        if self._left_short > 0:
            block = _packed(_details(task, in_full=False))
            self._left_short -= len(block)
            return self._put(block)
        self.bare += 1
        return 0, 0

    def notes(self) -> Iterator[str]:
        """Yield what is missing of tasks, and why."""
        if self.left_out:
            yield (
                f"{self.left_out:,} transcripts do not fit into this page ([report] "
                "transcripts_mb): they are files beside the results."
            )
        if self.bare:
            yield (
                f"Of {self.bare:,} tasks the page has only the table's figures, for the same "
                "reason: their prompts, answers and files are in their results."
            )

    def _put(self, block: str) -> tuple[int, int]:
        self._parts.append(block)
        self._at += len(block)
        return self._at - len(block), len(block)


def _packed(details: Mapping[str, Any]) -> str:
    return base64.b64encode(zlib.compress(msgspec.json.encode(details), _LEVEL)).decode()


def _details(task: TaskRecord, *, in_full: bool) -> dict[str, Any]:
    """Return a task in full: a block of its own, read when it is opened."""
    row, result = task.row, task.result
    most = _MAX_PASSAGE_CHARS if in_full else _MAX_SHORT_CHARS
    found: dict[str, Any] = {
        "directory": row.directory,
        "attempts": row.attempts,
        "worker": tasks.words(row.worker),
        # None: the transcript is not embedded.
        "passages": [*_passages(task)] if in_full else None,
    }
    if result is None:
        return found
    prompt = result.first_prompt[:most]
    size = _MOST_PATCH if in_full else _MOST_PATCH_SHORT
    came = made.outcome(
        result, task.source.folder, answer=most, patch=size, names=500 if in_full else 20
    )
    return {
        **found,
        **came,
        "prompt": prompt,
        "prompt_tree": pages.tree(prompt) if in_full else None,
        "answer_tree": came["answer_tree"] if in_full else None,
        "prompt_cut": len(result.first_prompt) - len(prompt),
        "error": result.error,
        "usage": result.usage,
        "timing": result.timing,
        "near": words.near_limits(result.near_limits),
        "tags": result.tags,
    }


def _passages(task: TaskRecord) -> Iterator[Mapping[str, Any]]:
    """Yield the conversation; what is endless is cut, and the cut said."""
    room = _MOST_PASSAGES
    for event in task.events:
        for each in passages(event, ""):
            if room <= 0:
                return
            if each.kind is Kind.PROMPT:
                continue  # it stands in the details
            room -= sum(
                min(len(part), _MAX_PASSAGE_CHARS) for part in (each.text, each.title, each.given)
            )
            yield pages.plain(each, _MAX_PASSAGE_CHARS)


_MEMORY = 2 << 30
_FILE = 1 << 30
#: What the disk must have left behind a report: results and the summary come after it.
_ROOM = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """One report, on one batch. The answer is why there is none; empty: there is one."""

    #: The path of the store.
    store: str
    batch: str
    #: The path of the report.
    target: str
    style: Style


def main() -> int:
    """Make reports until the input ends."""
    processes.end_with(sys.argv[1], expendable=True)
    processes.limit(resource.RLIMIT_AS, _MEMORY)
    processes.limit(resource.RLIMIT_FSIZE, _FILE)
    return processes.serve(_answers)


def _answers(wanted: bytes) -> Iterator[bytes]:
    """Write a report into its batch's folder."""
    job = decoders.decode(wanted, ReportJob)
    target = Path(job.target)
    with StoreReader(Path(job.store)) as reader:
        data = make(reader, [reader.batch(job.batch)], target.parent, job.style)
    files.make_folder(target.parent)
    room = replace(free_room.OUTBOX, size=len(data) + _ROOM)
    try:
        free_room.insist(str(target.parent), room)
        outbox.publish(target, data, replace=True)
        yield b""
    except free_room.NoRoomError as error:
        yield f"{error.filename}: {error.strerror}; {error.fix}".encode()
