"""What the report and the page of ``web`` share: conversations as plain values, Markdown as a tree,
and the files that browsers are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
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


#: In the order in which they are put together.
STYLES = ("base.css", "parts.css", "conversation.css", "diff.css")
SCRIPTS = ("words.js", "dom.js", "bars.js", "conversation.js", "diff.js")


@cache
def asset(package: str, name: str) -> str:
    """Return a source of a page, from the folder ``assets`` of a package."""
    return resources.files(package).joinpath("assets", name).read_text("utf-8")


def together(package: str, shared: Sequence[str], own: Sequence[str]) -> str:
    """Return sources that all pages share, and behind them those of a package, as one."""
    parts = [asset(__package__, name) for name in shared] + [asset(package, name) for name in own]
    return "\n".join(parts)
