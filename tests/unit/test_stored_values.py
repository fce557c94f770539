"""Large values as they are stored."""

from __future__ import annotations

import random
import zlib

import pytest

from batchd.store import stored_values


@pytest.mark.parametrize("length", [0, 1, 512, 513, 700, 4095, 4096, 4097, 20_000])
def test_what_is_stored_comes_back(length: int) -> None:
    """Text comes back whole; what is deflated is a zlib stream, as each version reads it."""
    draw = random.Random(length)
    body = bytes(draw.choices(b'abcdefgh ":{}', k=length))
    stored = stored_values.pack(body)
    assert stored_values.unpack(stored) == body
    if length > 512:
        assert stored.startswith(b"x")
        assert zlib.decompress(stored) == body


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    """Random text of many kinds of characters gains nothing."""
    body = b'"' + random.Random(1).randbytes(2000)
    assert stored_values.pack(body) == body
