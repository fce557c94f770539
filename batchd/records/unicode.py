"""Untidy text made fit to be sent, stored and read."""

from __future__ import annotations

from typing import Any


def valid(text: str) -> str:
    """Return ``text`` as valid Unicode: surrogate pairs joined, lone surrogates replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def valid_throughout(value: Any) -> Any:
    """Return a JSON value with every string in it made ``valid``. Raises ``RecursionError``."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, dict):
        return {valid(k): valid_throughout(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [valid_throughout(v) for v in value]
    return value


def line(text: str, limit: int = 300) -> str:
    """Return ``text`` as one line of at most ``limit`` characters, for people."""
    one = " ".join(c for c in text.split() if c)
    one = "".join(c if c.isprintable() else "�" for c in one)
    return one if len(one) <= limit else one[: limit - 1] + "…"
