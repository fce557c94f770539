"""One file with everything in it: style, script and data,
and a policy that lets nothing else in.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from string import Template
from typing import Any

import msgspec
from msgspec import structs

from batchd.formats import ResultV1
from batchd.observe import changes, pages
from batchd.observe.pages import plain
from batchd.records import tasks
from batchd.report.content import Content, Details
from batchd.report.gathering import TaskRecord
from batchd.spool import outbox
from batchd.views import Kind, passages

#: Characters of one passage, one prompt, one answer: a page is read by people.
_MAX_PASSAGE_CHARS = 40_000
#: The same without the transcript.
_MAX_SHORT_CHARS = 2_000
#: Characters of a whole transcript before it is deflated.
_MOST_PASSAGES = 2_000_000
#: Bytes of a patch, with the transcript and without.
_MOST_PATCH, _MOST_PATCH_SHORT = 1 << 20, 1 << 16
_LEVEL = 6


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
        #: Transcripts that are in it, and that would not fit.
        self.embedded = 0
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
        if task.events and self._left > 0:
            block = _packed(_details(task, in_full=True))
            if len(block) <= self._left:
                self._left -= len(block)
                self.embedded += 1
                return self._put(block)
            if self._left < self._crumbs:
                self._left = 0
        self.left_out += bool(task.events)
        if self._left_short > 0:
            block = _packed(_details(task, in_full=False))
            self._left_short -= len(block)
            return self._put(block)
        self.bare += 1
        return 0, 0

    def _put(self, block: str) -> tuple[int, int]:
        self._parts.append(block)
        self._at += len(block)
        return self._at - len(block), len(block)


def _packed(details: Details) -> str:
    return base64.b64encode(zlib.compress(msgspec.json.encode(details), _LEVEL)).decode()


def _details(task: TaskRecord, *, in_full: bool) -> Details:
    row, result = task.row, task.result
    most = _MAX_PASSAGE_CHARS if in_full else _MAX_SHORT_CHARS
    prompt, answer = (result.first_prompt, result.answer) if result else ("", "")
    return Details(
        prompt=prompt[:most],
        answer=answer[:most],
        prompt_tree=pages.tree(prompt[:most]) if in_full else None,
        answer_tree=pages.tree(answer[:most]) if in_full else None,
        left_out=max(0, len(prompt) - most) + max(0, len(answer) - most),
        directory=row.directory,
        evaluation=_plain(result.evaluation) if result else None,
        error=_plain(result.error) if result else None,
        files=_files(result, 500 if in_full else 20) if result else None,
        patch=_patch(task, _MOST_PATCH if in_full else _MOST_PATCH_SHORT),
        usage=_plain(result.usage) if result else None,
        timing=_plain(result.timing) if result else None,
        tags=result.tags if result else (),
        attempts=row.attempts,
        worker=tasks.words(row.worker),
        passages=tuple(_passages(task, prompt)) if in_full else None,
    )


def _patch(task: TaskRecord, most: int) -> dict[str, Any] | None:
    result = task.result
    if result is None:
        return None
    patch = result.patch
    data = outbox.whole_patch(task.folder, result.task, patch.sha256) if patch else None
    return changes.shown(result, data, most)


def _files(result: ResultV1, most: int) -> dict[str, Any] | None:
    """Return the names of changed files, and how many there are."""
    if result.files is None:
        return None
    kinds = structs.asdict(result.files)
    return {kind: {"count": len(names), "names": names[:most]} for kind, names in kinds.items()}


def _passages(task: TaskRecord, prompt: str) -> Iterator[Mapping[str, Any]]:
    """Yield the conversation; what is endless is cut, and the cut said."""
    room = _MOST_PASSAGES
    for event in task.events:
        for each in passages(event, prompt):
            if room <= 0:
                return
            if each.kind is Kind.PROMPT:
                continue  # it stands in the details
            room -= sum(
                min(len(part), _MAX_PASSAGE_CHARS) for part in (each.text, each.title, each.given)
            )
            yield plain(each, _MAX_PASSAGE_CHARS)


def _plain(value: Any) -> Any:
    return None if value is None else msgspec.to_builtins(value)


SCRIPTS = ("details.js", "timeline.js", "money.js", "table.js", "report.js")
#: What could end a data block, or a line of JavaScript where an old parser looks.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What all reports have in common."""

    template: Template
    policy: str
    style: str
    script: str


def page(content: Content, blocks: str) -> bytes:
    """Return the page. ``blocks``: what ``content.tasks.block`` points into."""
    frame = _frame()
    counts = ", ".join(f"{count:,} {status}" for status, count in content.counts.items() if count)
    text = frame.template.substitute(
        title=html.escape(content.title),
        policy=frame.policy,
        style=frame.style,
        script=frame.script,
        data=embedded(content),
        blocks=blocks,
        plain=f"<p>{len(content.tasks.id):,} tasks: {counts}. All else needs JavaScript; results.jsonl has it too.</p>",
    )
    return text.encode("utf-8", "replace")


@cache
def _frame() -> _Frame:
    style = pages.together(__package__, pages.STYLES, ("report.css",))
    script = pages.together(__package__, pages.SCRIPTS, SCRIPTS)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    template = Template(pages.asset(__package__, "page.html"))
    return _Frame(template=template, policy=html.escape(policy), style=style, script=script)


def embedded(content: Content) -> str:
    """Return the data as JSON that can stand within a script element, whatever texts are in it."""
    text = msgspec.json.encode(content).decode()
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
