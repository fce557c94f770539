"""Untidy text made fit to be read."""

from __future__ import annotations


def line(text: str, limit: int = 300) -> str:
    """Return ``text`` as one line of at most ``limit`` characters, for people."""
    one = " ".join(c for c in text.split() if c)
    one = "".join(c if c.isprintable() else "�" for c in one)
    return one if len(one) <= limit else one[: limit - 1] + "…"
