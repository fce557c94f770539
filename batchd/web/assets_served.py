"""What browsers are given to run:
three files, put together once, under names that change with them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from string import Template

from batchd.observe import pages

_SCRIPTS = (
    "live.js",
    "keep.js",
    "orders.js",
    "frame.js",
    "overview.js",
    "tasks.js",
    "batch.js",
    "made.js",
    "task.js",
    "days.js",
    "cost.js",
    "main.js",
)


@dataclass(frozen=True, slots=True)
class ServedAsset:
    """A file, as it is sent."""

    type: str
    data: bytes


@cache
def assets() -> dict[str, ServedAsset]:
    """Return all files, by the name that they are asked for by."""
    return {
        _named(kind, data): ServedAsset(_TYPES[kind.partition(".")[2]], data)
        for kind, data in _texts()
    }


@cache
def shell(*, login: bool, orders: bool = False) -> str:
    """Return the page that all pages are made in, or the one to sign in with.

    ``orders``: whether it may give any.
    """
    names = {kind: _named(kind, data) for kind, data in _texts()}
    script = names["login.js" if login else "app.js"]
    template = Template(pages.asset(__package__, "login.html" if login else "shell.html"))
    return template.substitute(
        style=f"/assets/{names['app.css']}",
        script=f"/assets/{script}",
        orders=" data-orders" if orders else "",
    )


_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


@cache
def _texts() -> tuple[tuple[str, bytes], ...]:
    return (
        ("app.css", pages.together(__package__, pages.STYLES, ("web.css",)).encode()),
        ("app.js", pages.together(__package__, pages.SCRIPTS, _SCRIPTS).encode()),
        ("login.js", pages.asset(__package__, "login.js").encode()),
    )


def _named(kind: str, data: bytes) -> str:
    name, _, ending = kind.partition(".")
    return f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.{ending}"
