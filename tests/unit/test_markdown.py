"""Markdown as trees: what is an element, and what stays text."""

from __future__ import annotations

from typing import Any

import pytest

from batchd.web.pages import TAGS, tree


def tags(nodes: list[Any]) -> list[str]:
    """Return the tags in nodes, from the top down."""
    found = []
    for node in nodes:
        if isinstance(node, dict):
            found += [node["tag"], *tags(node["in"])]
    return found


def words(nodes: list[Any]) -> str:
    """Return all texts in nodes."""
    return "".join(words(node["in"]) if isinstance(node, dict) else node for node in nodes)


def test_plain_words_need_no_tree() -> None:
    """Most answers are a sentence."""
    assert tree("All is done.\nAnd more.") is None


def test_what_markdown_has_becomes_elements() -> None:
    """Headings, lists, code, emphasis, tables, quotes; a list's paragraphs are none."""
    found = tree("# A *b*\n\n- x\n- `y`\n\n```py\nprint(1)\n```\n> q\n\n|a|\n|-|\n|1|\n\n3. c\n")
    assert found is not None
    assert tags(found) == [
        *("h1", "em", "ul", "li", "li", "code", "pre", "blockquote", "p"),
        *("table", "thead", "tr", "th", "tbody", "tr", "td", "ol", "li"),
    ]
    assert found[-1]["start"] == "3"  # type: ignore[index]
    assert "print(1)" in words(found)


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.pwned=1</script> *x*",
        "[a](javascript:alert(1)) *x*",
        "<img src=x onerror=y> *x*",
        "![i](http://127.0.0.1/x.png)",
        "[a](data:text/html,x) <a href='//e'>b</a> *x*",
        "*" * 4000 + "[" * 4000,
        "> " * 3000 + "x",
        "- " * 3000 + "x",
    ],
)
def test_no_markup_of_a_models_is_any(text: str) -> None:
    """Markup is text, links lead to http alone, no image is fetched, and no depth is too much."""
    found = tree(text)
    assert found is not None
    assert TAGS.issuperset(tags(found))

    def attributes(nodes: list[Any]) -> list[str]:
        given = [node for node in nodes if isinstance(node, dict)]
        own = [node["href"] for node in given if "href" in node]
        return own + [each for node in given for each in attributes(node["in"])]

    assert attributes(found) == []


def test_a_link_leads_where_it_says() -> None:
    """To a page of the web."""
    (paragraph,) = tree("see [this](https://example.org/a?b=1)") or []
    assert isinstance(paragraph, dict)
    assert paragraph["in"][1]["href"] == "https://example.org/a?b=1"
