"""Numbers of bytes, for people."""

from __future__ import annotations

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def amount(count: int) -> str:
    """Return a number of bytes as people read it: ``1.3 GiB``."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{count} bytes"
