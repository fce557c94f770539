"""A task's environment variables steer its own commands, and no program that runs before them."""

from __future__ import annotations

import subprocess

import pytest
from attacking import AS_ROOT, SECRET, Attack
from patience import until

#: Has the loader of every program print who it runs as.
PRINTING = {"LD_SHOW_AUXV": "1"}


def _uids(output: str) -> set[str]:
    return {line.split()[1] for line in output.splitlines() if line.startswith("AT_UID:")}


@pytest.mark.parametrize("who", ["root"], indirect=True)  # no other user becomes another user
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("bwrap", marks=pytest.mark.stopped_by("identity")),
        pytest.param("none", marks=pytest.mark.stopped_by("variables")),
    ],
)
def test_no_loader_variable_reaches_a_program_that_is_still_root(
    attack: Attack,
    backend: str,
) -> None:
    """LD_PRELOAD and its like work for the command, and not for what starts it as another user."""
    [(exit_code, output, _, _)] = attack.run(
        "true", env={**PRINTING, "TOKEN": "x"}, policy={"backend": backend}
    )
    assert exit_code == 0
    assert len(_uids(output)) == 1, "it took effect in a program of another user, too"
    assert "0" not in _uids(output)


@pytest.mark.stopped_by("variables arrive")
@pytest.mark.parametrize("backend", ["bwrap", "none"])
def test_variables_of_the_loader_work_for_commands(attack: Attack, backend: str) -> None:
    """What is set behind the programs of batchd is there all the same."""
    env = {"LD_LIBRARY_PATH": "/task/lib", "TZDIR": "/task/zones", "OTHER": "a b"}
    command = "echo $LD_LIBRARY_PATH,$TZDIR,$OTHER"
    [(_, output, _, _)] = attack.run(command, env=env, policy={"backend": backend})
    assert output == "/task/lib,/task/zones,a b\n"


#: Another user of the machine, who reads all command lines that there are.
STRANGER = ["setpriv", "--reuid=31337", "--regid=31337", "--clear-groups", "--"]


@pytest.mark.stopped_by("command lines")
@pytest.mark.skipif(not AS_ROOT, reason="only root sets anything behind a program")
@pytest.mark.parametrize("who", ["root"], indirect=True)
@pytest.mark.parametrize("name", ["LD_TOKEN", "BASH_TOKEN", "ENV"])
def test_no_variable_stands_on_a_command_line(attack: Attack, name: str) -> None:
    """Whatever a secret variable is called,
    other users of the machine do not read it, and it arrives as it is.
    """
    value = f"{SECRET} ${{HOME}} $(id) 'and' \"more\" \\c # \n"
    command = f'printf %s "${name}" > here; env > all; until [ -e end ]; do sleep 0.05; done'
    with attack.begin(command, env={name: value, "BATCHD_LATE_0": "own"}) as process:
        until((attack.folder / "all").exists)
        looking = [*STRANGER, "sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null"]
        looked = subprocess.run(looking, capture_output=True, text=True, check=False).stdout
        (attack.folder / "end").touch()
        process.communicate()
    assert (attack.folder / "here").read_text() == value
    carriers = [line for line in (attack.folder / "all").read_text().splitlines() if "LATE" in line]
    assert carriers == ["BATCHD_LATE_0=own"], "what carried it is gone"
    assert "until [ -e end ]" in looked, "this looks at command lines"
    assert SECRET not in looked
