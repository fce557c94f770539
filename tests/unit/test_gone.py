"""What 0.2.0 had is still there, or refused with what to write instead: ``batchd/errors.py``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from batchd import cli, config
from batchd.errors import ConfigError, UsageError
from batchd.gone import GONE_COMMANDS, GONE_KEYS, GONE_NOTIFY_WORDS, GONE_OPTIONS

_OLD = Path(__file__).parents[1] / "data" / "0.2.0"


def test_each_key_of_the_configuration_is_there_or_says_what_to_write(tmp_path: Path) -> None:
    """Its sample file, with all that stands in comments there: every complaint comes at once, and
    is one of the table.
    """
    sample = (_OLD / "config.toml").read_text("utf-8")
    path = tmp_path / "config.toml"
    path.write_text(re.sub(r"^# (?=\[|[a-z_]+ = )", "", sample, flags=re.MULTILINE), "utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    found = caught.value.problems
    assert all(problem.message.endswith("any more") for problem in found), found
    assert {problem.hint for problem in found} == {
        *GONE_KEYS.values(),
        *GONE_NOTIFY_WORDS.values(),
    }


def test_each_command_and_option_is_there_or_says_what_to_type() -> None:
    """Those that its page of commands names."""
    known = _parsers(cli.parser(frozenset(cli.COMMANDS)))
    seen = set()
    for line in (_OLD / "commands.md").read_text("utf-8").splitlines():
        if not line.startswith("| `batchd"):
            continue
        commands = re.findall(r"`(?:batchd )?([a-z]+)", line.partition(" | ")[0])
        assert {*commands} <= known.keys() | GONE_COMMANDS.keys(), line
        for option in re.findall(r"--[a-z-]+", line):
            key = f"{commands[0]} {option}"
            seen.add(key)
            if key not in GONE_OPTIONS:
                assert option in known[commands[0]]._option_string_actions, key
    assert {"check --live", "run --private"} <= seen


@pytest.mark.parametrize("words", sorted(GONE_OPTIONS))
def test_an_option_that_is_gone_is_refused_with_what_to_type(words: str) -> None:
    """Also with a value, and wherever it stands."""
    with pytest.raises(UsageError, match=re.escape(GONE_OPTIONS[words])):
        cli.parser(words.split()).parse_args([*words.split()])


def test_a_command_that_is_gone_is_refused_with_what_to_type() -> None:
    """Whatever stands behind it."""
    for command, instead in GONE_COMMANDS.items():
        with pytest.raises(UsageError, match=re.escape(instead)):
            cli._parse([command, "x"])


def _parsers(whole: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (commands,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)
