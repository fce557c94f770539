"""One file with everything in it: style, script and data,
and a policy that lets nothing else in.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from string import Template

import msgspec

from batchd.observe import pages
from batchd.report.content import Content

SCRIPTS = ("details.js", "timeline.js", "money.js", "table.js", "report.js")
#: Tasks that a browser without scripts is shown.
_MOST_PLAIN = 100
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
    text = frame.template.substitute(
        title=html.escape(content.title),
        policy=frame.policy,
        style=frame.style,
        script=frame.script,
        data=embedded(content),
        blocks=blocks,
        plain=_plain(content),
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


def _plain(content: Content) -> str:
    """Return what is shown where scripts do not run."""
    tasks, counts = content.tasks, content.counts
    summary = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    rows = zip(tasks.id, tasks.status, tasks.reason, tasks.message, strict=True)
    lines = [_row(row) for _, row in zip(range(_MOST_PLAIN), rows, strict=False)]
    more = len(tasks.id) - len(lines)
    rest = f"<p>… and {more:,} more: results.jsonl has them all.</p>" if more else ""
    return (
        f"<p>{len(tasks.id):,} tasks: {summary}. Charts, sorting and transcripts need JavaScript.</p>"
        f"<table><tr><th>Task<th>Status<th>Reason<th>Message</tr>{''.join(lines)}</table>{rest}"
    )


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in cells)}</tr>"
