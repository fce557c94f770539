"""One file with everything in it: style, script and data, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from string import Template

import msgspec

from batchd.report.content import Content

STYLES = ("base.css", "conversation.css", "report.css")
SCRIPTS = (
    "words.js",
    "dom.js",
    "conversation.js",
    "details.js",
    "timeline.js",
    "money.js",
    "table.js",
    "report.js",
)
#: Tasks that a browser without scripts is shown.
_MOST_PLAIN = 100
#: What could end a data block, or a line of JavaScript where an old parser looks.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


@cache
def asset(name: str) -> str:
    """Return a source of the page."""
    return resources.files("batchd.report").joinpath("assets", name).read_text("utf-8")


def page(content: Content, blocks: str) -> bytes:
    """Return the page. ``blocks``: what ``content.tasks.block`` points into."""
    style = "\n".join(asset(name) for name in STYLES)
    script = "\n".join(asset(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    text = Template(asset("page.html")).substitute(
        title=html.escape(content.title),
        policy=html.escape(policy),
        style=style,
        script=script,
        data=embedded(content),
        blocks=blocks,
        plain=_plain(content),
    )
    return text.encode("utf-8", "replace")


def embedded(content: Content) -> str:
    """Return the data as JSON that can stand within a script element, whatever texts are in it."""
    text = msgspec.json.encode(content).decode()
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(content: Content) -> str:
    """Return what is shown where scripts do not run."""
    tasks, counts = content.tasks, content.counts
    told = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    rows = zip(tasks.id, tasks.status, tasks.reason, tasks.message, strict=True)
    lines = [_row(row) for _, row in zip(range(_MOST_PLAIN), rows, strict=False)]
    more = len(tasks.id) - len(lines)
    rest = f"<p>… and {more:,} more: results.jsonl has them all.</p>" if more else ""
    return (
        f"<p>{len(tasks.id):,} tasks: {told}. Charts, sorting and transcripts need JavaScript.</p>"
        f"<table><tr><th>Task<th>Status<th>Reason<th>Message</tr>{''.join(lines)}</table>{rest}"
    )


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in cells)}</tr>"
