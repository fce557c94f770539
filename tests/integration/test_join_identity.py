"""The daemon's key and certificate for workers of other machines:
what is wrong with them is named as what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchd.errors import NotPossibleError
from batchd.pool.joining.certificate import identity


def _another(key: Path) -> None:
    other = key.parent / "other"
    other.mkdir()
    key.write_bytes(identity(other).key.read_bytes())


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (Path.unlink, "is not there"),
        (lambda key: key.write_text("nonsense"), "cannot be used"),
        (lambda key: key.write_bytes(key.read_bytes()[:80]), "cannot be used"),
        (_another, "is another one's"),
    ],
    ids=["missing", "nonsense", "half", "another"],
)
def test_a_key_that_does_not_go_with_its_certificate_is_named(
    tmp_path: Path, harm: Callable[[Path], object], why: str
) -> None:
    """With the way out: the certificate beside it is good."""
    known = identity(tmp_path)
    known.context()
    harm(known.key)
    with pytest.raises(NotPossibleError) as found:
        identity(tmp_path).context()
    said = str(found.value)
    assert "join-key.pem, the key of join-certificate.pem, " + why in said
    assert "put it back from a backup, or remove both" in said
