"""Models in use that are shut down, or will be soon, as `status` shows them."""

from __future__ import annotations

from collections.abc import Iterator

from batchd.control import ModelWarning
from batchd.log import escape


def lines(warned: ModelWarning) -> Iterator[str]:
    """Yield two lines: which model ends when, and what to do about it."""
    yield escape(f"Model {warned.message}")
    yield escape(f"  To go on: {warned.mend}")
