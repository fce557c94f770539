"""What is made from the code is as the code is: completions, man page, schemas."""

from __future__ import annotations

from pathlib import Path

import generated

DATA = Path(__file__).parents[2] / "batchd/data"


def test_it_is_current() -> None:
    """Each file is what `make generated` would make of it, and none is left from before."""
    made = generated.made()
    folders = {name.partition("/")[0] for name in made}
    there = [p for folder in folders for p in (DATA / folder).rglob("*") if p.is_file()]
    stale = [
        name
        for name, text in made.items()
        if not (DATA / name).is_file() or (DATA / name).read_text("utf-8") != text
    ]
    assert not stale, "run `make generated`"
    assert {str(p.relative_to(DATA)) for p in there} == set(made)
