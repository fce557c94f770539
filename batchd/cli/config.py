"""``batchd config``: the values in force, and where each comes from."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import Any

from batchd import config, control
from batchd.cli.display import formatting
from batchd.config import origins, trust
from batchd.config.origins import ValueSource
from batchd.errors import NoAnswerError, NoDaemonError
from batchd.log import escape

#: Where what a line says of its value begins, unless the value is longer.
_ASIDE = 42


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON, for programs")
    shown.add_argument(
        "--sample",
        action="store_true",
        help="print a sample file instead: every key with its default and its meaning",
    )
    parser.epilog = (
        "Each line is a SECTION.KEY, as `batchd tune` takes it, its value, and the line of the file, the variable, "
        "the preset or the default that it comes from. Secrets are never shown: … stands for them."
    )


def run(args: argparse.Namespace) -> int:
    """Show them all, or which there are."""
    if args.sample:
        sample = importlib.resources.files("batchd") / "data" / "config.toml"
        print(sample.read_text("utf-8"), end="")
        return 0
    settings = config.load(args.config)
    # The daemon's process, what is changed in it, and whether there is one that does not answer.
    pid: int | None = None
    tuned: dict[str, str] = {}
    silent, state = False, Path(settings.paths.state)
    try:
        tuned = dict(control.ask(state, control.Tune()).overrides)
        pid = control.ask(state, control.AskStatus()).pid
    except NoDaemonError as error:
        tuned, silent = {}, isinstance(error, NoAnswerError)
    values = [*origins.values(settings, tuned)]
    if args.json:
        rows = [dataclasses.asdict(value) for value in values]
        formatting.print_json({"file": settings.file, "daemon": pid, "values": rows})
        return 0
    if settings.file:
        print(f"# {escape(settings.file)}")
    else:
        print("# No configuration is found: defaults, and a spool of your own,")
        print(
            f"# {escape(str(trust.own_spool(settings.environ)))}; `batchd init DIR` makes another."
        )
    if pid:
        print(
            f"# Daemon {pid} has the file as it was when it last read it, and an environment of its"
        )
        print("# own; what `batchd tune` has changed in it is marked as such.")
    elif silent:
        print("# The daemon does not answer: what `batchd tune` may have changed is not known.")
    for value in values:
        if value.value is not None:
            # What `tune` has changed is text as TOML has it already.
            shown = value.value if value.source is ValueSource.TUNE else _toml(value.value)
            where = f"line {value.line}" if value.source is ValueSource.FILE else value.variable
            print(escape(f"{f'{value.key} = {shown}':<{_ASIDE}}  # {where or value.source}"))
    return 0


def _toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
