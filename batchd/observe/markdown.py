"""Markdown of prompts and answers, as trees that pages make elements of:
texts stay texts, and no markup of a model's is any.

A node is a text, or an element:
``{"tag": "p", "in": ["All is ", {"tag": "strong", "in": ["done"]}]}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

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
