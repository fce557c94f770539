"""The stand-in's opaque items, which clients must send back byte for byte."""

from __future__ import annotations

from standin import opaque
from standin.opaque import Seal

SEAL = Seal(model="m", account="org-a", prefix="p", beside="b", tokens=7)


def test_a_seal_opens_as_it_is_and_not_with_a_byte_changed() -> None:
    """Every character counts, the last ones too, of which Base64 ignores some bits;
    nothing else is a seal.
    """
    for size in (0, 301, 302, 303):
        text = opaque.sealed(SEAL, size)
        assert opaque.opened(text) == SEAL
        for at, char in enumerate(text):
            for other in ("A", "B", "/", "=", "é"):
                if other != char:
                    assert opaque.opened(text[:at] + other + text[at + 1 :]) is None
        for wrong in (
            text[:-4],
            text + "AAAA",
            text + "=",
            text + "\n",
            "",
            "AAAA",
            "none of ours",
        ):
            assert opaque.opened(wrong) is None


def test_no_two_seals_are_the_same() -> None:
    """Of the same thought, too; and they are about as long as was asked for."""
    texts = [opaque.sealed(SEAL, 5000) for _ in range(20)]
    assert len({*texts}) == 20
    assert all(abs(len(text) - 5000) < 10 for text in texts)
