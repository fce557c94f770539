"""A process that holds keys is closed to every other process of its own user,
agents' commands among them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from attacking import DRIVERS, HERE, PAYLOADS

KEY = "sk-sealed-key-4711"


def _found(who: Sequence[str], how: str) -> Sequence[str]:
    """Return what a process of the same user finds out about one that holds a key."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    with _holding([*who, sys.executable, DRIVERS / "holding.py", how], environment) as (
        process,
        said,
    ):
        assert said == "ready"
        return _looked(who, process.pid)


def _forked(who: Sequence[str]) -> Sequence[str]:
    """Return what a process of the same user finds out about a pool's fork server."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    with _holding([*who, sys.executable, DRIVERS / "forking.py"], environment) as (_, said):
        return _looked(who, int(said))


def _looked(who: Sequence[str], pid: int) -> Sequence[str]:
    command = [*who, sys.executable, PAYLOADS / "searching.py", str(pid), KEY]
    looked = subprocess.run(command, capture_output=True, text=True, check=True)
    return looked.stdout.splitlines()


@contextlib.contextmanager
def _holding(
    command: Sequence[str | Path], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process; give it, and the first line that it prints."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().rstrip("\n")
        finally:
            process.kill()


@pytest.mark.stopped_by("sealing")
def test_no_process_of_the_same_user_looks_into_a_sealed_process(somebody: list[str]) -> None:
    """Its environment, memory and descriptors are closed;
    those of one that is not sealed are not.
    """
    assert _found(somebody, "sealed") == [
        *("environ Permission denied", "memory Permission denied", "descriptors Permission denied")
    ]
    assert _found(somebody, "open")[0] == "environ True", "this test would not see a leak"


@pytest.mark.stopped_by("sealing")
def test_no_process_of_the_same_user_looks_into_the_fork_server(somebody: list[str]) -> None:
    """What forks the workers is sealed before it loads anything:
    who could write into it could keep them from it.
    """
    assert _forked(somebody) == [
        *("environ Permission denied", "memory Permission denied", "descriptors Permission denied")
    ]


@pytest.mark.stopped_by("forgetting")
def test_even_root_finds_no_key_in_the_environment(who: list[str]) -> None:
    """Where the variable stood there are zeros: nothing that reads /proc later has it."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    command = [*who, sys.executable, DRIVERS / "forgetting.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert KEY not in done.stdout
    assert "MY_API_KEY=\0" in done.stdout
