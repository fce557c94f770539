"""What pages in a browser share: their look, and scripts that know of no page in particular."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

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
