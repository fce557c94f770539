"""ULIDs: 26 characters that sort by time, then by chance, and never repeat."""

from __future__ import annotations

import os
import re
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U
_RANDOM_BITS = 80
LENGTH = 26

PATTERN = re.compile(f"[0-7][{_ALPHABET}]{{{LENGTH - 1}}}")


class _Ulids:
    """Makes them, each greater than the one before, also when the clock is set back."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        random = int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
        fresh = time.time_ns() // 1_000_000 << _RANDOM_BITS | random
        with self._lock:
            later = fresh >> _RANDOM_BITS > self._last >> _RANDOM_BITS
            self._last = value = fresh if later else self._last + 1
        return "".join(_ALPHABET[value >> 5 * place & 31] for place in reversed(range(LENGTH)))


_ULIDS = _Ulids()


def ulid() -> str:
    """Return a new ULID, greater than all that this process made before."""
    return _ULIDS()


def time_of(value: str) -> float:
    """Return when a ULID was made, in seconds since the epoch."""
    number = 0
    for character in value[:10]:
        number = number << 5 | _ALPHABET.index(character)
    return number / 1000
