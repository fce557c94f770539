"""Repositories that tasks may name by a URL: those of ``[workspace] repos``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from batchd.errors import Problem

#: No user of https, no port that is none, nothing that a server could take for another path:
#: ``..``, escapes, a query.
_URL = re.compile(
    r"(https://|ssh://([A-Za-z0-9._-]+@)?)[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~+-]+)+/?"
)
_FORM = "it is written https://HOST/PATH or ssh://USER@HOST/PATH"
_ANY = "*"


def pattern_problem(pattern: str) -> Problem | None:
    """Return what is wrong with an entry of ``[workspace] repos``, if anything."""
    if pattern.endswith(f"/{_ANY}"):
        pattern = f"{pattern.removesuffix(_ANY)}any"
    if _url(pattern):
        return None
    return Problem("", f"{pattern!r} is not the URL of a repository", f"{_FORM}, or ends in /*")


def problem(url: str, patterns: Iterable[str]) -> Problem | None:
    """Return why no task may name a URL, if that is so."""
    if not _url(url):
        return Problem("", f"{url!r} is not the URL of a repository", _FORM)
    allowed = tuple(patterns)
    if any(_meets(url, pattern) for pattern in allowed):
        return None
    words = ", ".join(allowed) or "which is empty"
    return Problem("", f"{url} is not in [workspace] repos, {words}", "add it there")


def _url(text: str) -> bool:
    return bool(_URL.fullmatch(text)) and not any(part in {".", ".."} for part in text.split("/"))


def _meets(url: str, pattern: str) -> bool:
    if pattern.endswith(f"/{_ANY}"):
        return url.startswith(pattern.removesuffix(_ANY))
    return url.rstrip("/") == pattern.rstrip("/")
