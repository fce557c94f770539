"""What pages are made of, live ones and reports: styles, scripts and shells, Markdown as a tree,
passages of a conversation as plain values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any, TypeAlias

from batchd.views import Kind, Passage

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


Node: TypeAlias = str | dict[str, Any]

#: What pages make elements of; of all others the text alone.
TAGS = frozenset(
    {
        *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br"),
        *("strong", "em", "s", "code", "pre", "a", "table", "thead", "tbody", "tr", "th", "td"),
    }
)
#: Where a link may lead.
_SCHEMES = ("https://", "http://")
#: What begins most of Markdown: a text without any of these is shown as it is.
_MARKS = frozenset("#*_`|~>[=<&\\1234567890-+")


@lru_cache(256)
def tree(text: str) -> list[Node] | None:
    """Return a text as nodes, which are not to be changed;
    None where it is plain words, which need none.
    """
    if not _MARKS.intersection(text):
        return None
    return _nodes(_parser().parse(text))


@cache
def _parser() -> MarkdownIt:
    # Loaded when it is needed: it takes a while.
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def _nodes(tokens: Sequence[Token]) -> list[Node]:
    """Return the nodes of tokens, which open and close elements."""
    stack: list[list[Node]] = [[]]
    for token in tokens:
        if token.nesting < 0:
            stack.pop()
        elif not token.nesting:
            stack[-1] += _leaf(token)
        elif token.tag in TAGS and not token.hidden:
            made = _element(token.tag, [], **_attributes(token))
            stack[-1].append(made)
            stack.append(made["in"])
        else:  # a paragraph of a tight list is none that is seen
            stack.append(stack[-1])
    return stack[0]


def _element(tag: str, inside: list[Node], **attributes: str) -> dict[str, Any]:
    return {"tag": tag, **attributes, "in": inside}


def _leaf(token: Token) -> list[Node]:
    match token.type:
        case "inline":
            return _nodes(token.children or ())
        case "fence" | "code_block":
            return [_element("pre", [token.content.rstrip("\n")])]
        case "code_inline":
            return [_element("code", [token.content])]
        case "softbreak":
            return ["\n"]
        case "hardbreak":
            return [_element("br", [])]
        case "hr":
            return [_element("hr", [])]
        case "image":
            # Nothing is fetched from anywhere.
            return [f"[{token.content or 'image'}]"]
    return [token.content] if token.content else []


def _attributes(token: Token) -> dict[str, str]:
    target = str(token.attrGet("href") or "")
    if token.tag == "a" and target.startswith(_SCHEMES):
        return {"href": target}
    start = token.attrGet("start")
    return {"start": str(start)} if token.tag == "ol" and start is not None else {}


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
        "tree": tree(text) if passage.kind in _PROSE else None,
        "ok": passage.ok,
        "seconds": round(passage.seconds, 3),
        "tokens": [usage.input_tokens, usage.output_tokens] if usage else None,
    }
    return {k: v for k, v in value.items() if v or v is False}


#: Sources in the order in which they are put together: what all pages have, …
_STYLES = ("base.css", "parts.css", "conversation.css", "diff.css", "batch.css")
_SCRIPTS = (
    *("words.js", "dom.js", "keep.js", "bars.js", "conversation.js", "diff.js", "made.js"),
    *("timeline.js", "money.js", "tasks.js", "batch.js"),
)
#: … a report alone, and the page that a server sends.
_REPORT = ("details.js", "report.js")
_LIVE = (
    *("live.js", "orders.js", "dropping.js", "search.js", "frame.js", "overview.js"),
    *("following.js", "task.js", "days.js", "cost.js", "main.js"),
)


@cache
def _asset(name: str) -> str:
    """Return a source of a page."""
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


def _together(*names: str) -> str:
    return "\n".join(map(_asset, names))


def report() -> tuple[Template, str, str]:
    """Return the shell of a report, its style and its script."""
    style = _together(*_STYLES, "report.css")
    return Template(_asset("report.html")), style, _together(*_SCRIPTS, *_REPORT)


@dataclass(frozen=True, slots=True)
class ServedAsset:
    """A file, as it is sent."""

    #: What it is asked for by: its own name, and what changes with its content.
    name: str
    type: str
    data: bytes


@cache
def assets() -> dict[str, ServedAsset]:
    """Return all files that browsers ask a server for, by the names that they have here."""
    texts = {
        "app.css": _together(*_STYLES, "web.css"),
        "app.js": _together(*_SCRIPTS, *_LIVE),
        "login.js": _asset("login.js"),
    }
    return {kind: _served(kind, text.encode()) for kind, text in texts.items()}


def _served(kind: str, data: bytes) -> ServedAsset:
    name, _, ending = kind.partition(".")
    mark = hashlib.sha256(data).hexdigest()[:12]
    return ServedAsset(f"{name}-{mark}.{ending}", _TYPES[ending], data)


_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


@cache
def shell(*, login: bool, orders: tuple[str, ...] = ()) -> str:
    """Return the page that all pages are made in, or the one to sign in with.

    ``orders``: the verbs of those that it may give.
    """
    script = assets()["login.js" if login else "app.js"]
    return Template(_asset("login.html" if login else "shell.html")).substitute(
        style=f"/assets/{assets()['app.css'].name}",
        script=f"/assets/{script.name}",
        orders=f' data-orders="{" ".join(orders)}"' if orders else "",
    )
