"""ULIDs: 26 characters that sort by time, then by chance, and never repeat."""

from __future__ import annotations

import os
import re
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U
_RANDOM_BITS = 80
LENGTH = 26
#: Of the random bits, the first may be a maker's mark. What is left is more than enough.
MARK_BITS = 32
_BEHIND_BITS = _RANDOM_BITS - MARK_BITS
#: A clock that was set back by less still gives ULIDs that sort; by more, ULIDs show the new time.
_PATIENCE_MS = 60_000

PATTERN = re.compile(f"[0-7][{_ALPHABET}]{{{LENGTH - 1}}}")


class Ulids:
    """The maker of ULIDs, each greater than the one before,
    unless the clock was set back by more than a minute.
    """

    def __init__(self, mark: int | None = None) -> None:
        """``mark``: a number of ``MARK_BITS`` that all of them carry; None: chance."""
        self._mark = mark
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """Return a new one."""
        random = int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
        if self._mark is not None:
            random = self._mark << _BEHIND_BITS | random & (1 << _BEHIND_BITS) - 1
        now = time.time_ns() // 1_000_000
        with self._lock:
            last = self._last >> _RANDOM_BITS
            if now > last or now < last - _PATIENCE_MS:
                self._last = now << _RANDOM_BITS | random
            else:
                self._last += 1
            value = self._last
        return _text(value)


_ULIDS = Ulids()


def ulid() -> str:
    """Return a new ULID, greater than all that this process made before in this way."""
    return _ULIDS()


def time_of(value: str) -> float:
    """Return when a ULID was made, in seconds since the epoch."""
    return _number(value[:10]) / 1000


def mark_of(value: str) -> int:
    """Return the mark that its maker gave it, or chance."""
    return _number(value) >> _BEHIND_BITS & (1 << MARK_BITS) - 1


def marked(value: str, mark: int) -> str:
    """Return a ULID with a maker's mark in the place of what it carries; the same one each time."""
    kept = _number(value) & ~(((1 << MARK_BITS) - 1) << _BEHIND_BITS)
    return _text(kept | mark << _BEHIND_BITS)


def _text(number: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(LENGTH)))


def _number(text: str) -> int:
    number = 0
    for character in text:
        number = number << 5 | _ALPHABET.index(character)
    return number
