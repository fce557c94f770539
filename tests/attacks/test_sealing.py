"""A process that holds keys is closed to every other process of its own user, agents' commands among them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from attacking import DRIVERS, HERE, PAYLOADS

KEY = "sk-sealed-key-4711"


def _found(who: Sequence[str], how: str) -> Sequence[str]:
    """Return what a process of the same user finds out about one that holds a key."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    holder = [*who, sys.executable, DRIVERS / "holding.py", how]
    with subprocess.Popen(holder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            command = [*who, sys.executable, PAYLOADS / "searching.py", str(process.pid), KEY]
            looked = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            process.kill()
    return looked.stdout.splitlines()


@pytest.mark.stopped_by("sealing")
def test_nobody_of_the_same_user_looks_into_a_sealed_process(somebody: list[str]) -> None:
    """Its environment, memory and descriptors are closed; those of one that is not sealed are not."""
    assert _found(somebody, "sealed") == [
        *("environ Permission denied", "memory Permission denied", "descriptors Permission denied")
    ]
    assert _found(somebody, "open")[0] == "environ True", "this test would not see a leak"


@pytest.mark.stopped_by("forgetting")
def test_even_root_finds_no_key_in_the_environment(who: list[str]) -> None:
    """Where the variable stood there are zeros: nothing that reads /proc later has it."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    command = [*who, sys.executable, DRIVERS / "forgetting.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert KEY not in done.stdout
    assert "MY_API_KEY=\0" in done.stdout
