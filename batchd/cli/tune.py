"""``batchd tune``: changes the configuration of the running daemon, until it ends."""

from __future__ import annotations

import argparse

from batchd.cli.support import controlling
from batchd.control import Tune
from batchd.errors import UsageError
from batchd.log import escape

_WHY = "`tune` changes a running daemon; for the next one, edit config.toml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Example: `batchd tune pool.processes=8 budget.per_day_usd=20`. Changes outlast "
        "SIGHUP, and end with the daemon or with `tune --reset`. Without arguments, tune "
        "shows what is changed."
    )
    parser.add_argument("change", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--reset", action="store_true", help="first undo all earlier changes")
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Change the daemon's configuration, and print all changes in force."""
    changes: dict[str, str] = {}
    for change in args.change:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{escape(change)} is not SECTION.KEY=VALUE")
        changes[key.strip()] = value
    answer = controlling.running(args.config, Tune(changes=changes, reset=args.reset), _WHY)
    lines = [f"{key} = {value}" for key, value in answer.overrides.items()]
    if not lines:
        lines = ["Nothing is changed: the daemon works as config.toml says."]
    return controlling.show(answer, lines, json=args.json)
