"""What `--help` shows as examples works as it stands;
and who names no command is shown the way in.
"""

from __future__ import annotations

import shlex

import pytest

from batchd.cli import COMMANDS, about, main, parser


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_parse(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each begins with the command's own name, has arguments that it takes,
    and stands below its help, in 80 columns.
    """
    whole = parser()
    _, examples = about(command)
    for line in examples:
        first = shlex.split(line.partition("|")[0])
        assert first[0] == "batchd"
        assert whole.parse_args(first[1:]).command == command
    with pytest.raises(SystemExit):
        whole.parse_args([command, "--help"])
    shown = capsys.readouterr().out
    assert f"  {examples[-1]}\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_nothing_but_the_name_shows_the_way_in(capsys: pytest.CaptureFixture[str]) -> None:
    """It fits a terminal, names commands that there are, and is wrong use as before."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert max(map(len, shown.splitlines())) <= 80
    named = [line.split()[1] for line in shown.splitlines() if line.startswith("  batchd ")]
    assert set(named) <= set(COMMANDS)
    assert {"demo", "init", "run", "status"} <= set(named)
