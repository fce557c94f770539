"""An attack that cannot succeed proves nothing:
each is tied to layers, without which ``weakened`` sees it succeed.
"""

from __future__ import annotations

import pytest
from attacking import AS_ROOT, HERE
from layers import LAYERS, edits, layers_of, named
from weakened import changed, outcomes


def test_every_attack_names_what_stops_it(request: pytest.FixtureRequest) -> None:
    """Layers that there are, each of them named by some attack;
    and each change still finds the line that it changes.
    """
    here = HERE / "tests/attacks"
    exempt = ("test_ordinary.py", "test_weakened.py")
    free = [i.nodeid for i in request.session.items if i.path.parent == here and i.path.name not in exempt and not layers_of(i)]  # fmt: skip
    assert free == []
    claimed = named()
    assert {layer for name in claimed for layer in name.split(" + ")} == LAYERS.keys()
    for name in claimed:
        for edit in edits(name):
            changed((HERE / "batchd" / edit[0]).read_text(), edit)


@pytest.mark.long
@pytest.mark.skipif(not AS_ROOT, reason="what is let loose is kept apart, which only root can do")
def test_an_attack_succeeds_without_its_layer() -> None:
    """The quickest of them, as an example: setuid programs are made,
    as root and as an ordinary user, and all else works.
    """
    found = outcomes("setid", ["-k", "lends or ordinary_command"])
    assert {name: passed for name, passed in found.items() if "lends" in name} == {
        f"test_neighbours::test_no_program_lends_its_owners_rights[{who}]": False
        for who in ("root", "unprivileged")
    }
    assert [passed for name, passed in found.items() if "ordinary" in name] == [True, True]
