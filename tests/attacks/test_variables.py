"""A task's environment variables steer its own commands, and no program that runs before them."""

from __future__ import annotations

import pytest
from attacking import Attack

#: Has the loader of every program tell who it runs as.
TELLING = {"LD_SHOW_AUXV": "1"}


def _uids(output: str) -> set[str]:
    return {line.split()[1] for line in output.splitlines() if line.startswith("AT_UID:")}


@pytest.mark.stopped_by("variables")
@pytest.mark.parametrize("who", ["root"], indirect=True)  # nobody else becomes another user
@pytest.mark.parametrize("backend", ["bwrap", "none"])
def test_no_loader_variable_reaches_a_program_that_is_still_root(
    attack: Attack,
    backend: str,
) -> None:
    """LD_PRELOAD and its like work for the command, and not for what starts it as another user."""
    [(exit_code, output, _, _)] = attack.run(
        "true", env={**TELLING, "TOKEN": "x"}, policy={"backend": backend}
    )
    assert exit_code == 0
    assert len(_uids(output)) == 1, "it took effect in a program of another user, too"
    assert "0" not in _uids(output)


@pytest.mark.stopped_by("variables arrive")
def test_variables_of_the_loader_work_for_commands(attack: Attack) -> None:
    """What is set behind the programs of batchd is there all the same."""
    env = {"LD_LIBRARY_PATH": "/task/lib", "TZDIR": "/task/zones", "OTHER": "a b"}
    [(_, output, _, _)] = attack.run("echo $LD_LIBRARY_PATH,$TZDIR,$OTHER", env=env)
    assert output == "/task/lib,/task/zones,a b\n"
