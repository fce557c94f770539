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


@pytest.mark.parametrize("size", [0, 1, 512, 513, 2000])
@pytest.mark.parametrize("lengths", [(500,), (0, 1, 508), (1023, 1024, 1025, 5000)])
def test_texts_that_end_alike_come_back(lengths: tuple[int, ...], size: int) -> None:
    """Each is a stream of its own, as each version reads it, and small where they share much."""
    draw = random.Random(size)
    end = b"}" + b'"nothing": 0, ' * (size // 14)
    bodies = [bytes(draw.choices(b'abcdefgh ":{', k=length)) + end for length in lengths]
    found = stored_values.pack_alike(bodies)
    assert [stored_values.unpack(each) for each in found] == bodies
    for each, body in zip(found, bodies, strict=True):
        assert each == body or zlib.decompress(each) == body
        assert len(each) <= len(body)
        if size > 513:
            assert len(each) < len(body) - size // 2
        if len(body) > 4000:
            assert len(each) < 4000


def test_nothing_is_stored_as_nothing() -> None:
    """No texts are none."""
    assert stored_values.pack_alike([]) == []
