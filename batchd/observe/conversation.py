"""A task's conversation as pages are given it:
in JSON, prompts and answers as trees of Markdown, long texts cut.

Texts come from models and files: who shows them neutralises them.
"""

from __future__ import annotations

from typing import Any

from batchd.observe import markdown
from batchd.views import Kind, Passage

#: What pages show as Markdown.
_PROSE = frozenset({Kind.PROMPT, Kind.ANSWER})


def plain(passage: Passage, most: int) -> dict[str, Any]:
    """Return a passage as pages are given it:
    no text longer than ``most``, and how much of it that cost.
    """
    text, title, given = passage.text[:most], passage.title[:most], passage.given[:most]
    usage = passage.usage
    value = {
        "at": round(passage.at, 3),
        "kind": passage.kind,
        "title": title,
        "text": text,
        "given": given,
        "cut": sum(map(len, (passage.text, passage.title, passage.given)))
        - len(text + title + given),
        "tree": markdown.tree(text) if passage.kind in _PROSE else None,
        "ok": passage.ok,
        "seconds": round(passage.seconds, 3),
        "tokens": [usage.input_tokens, usage.output_tokens] if usage else None,
    }
    return {k: v for k, v in value.items() if v or v is False}
