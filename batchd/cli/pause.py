"""``batchd pause``: lets things wait until ``resume``;
what runs stops at its next durable point.
"""

from __future__ import annotations

import argparse

from batchd import words
from batchd.cli.support import controlling, scopes
from batchd.control import Pause, Paused
from batchd.records import Scope


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    scopes.arguments(parser)
    parser.add_argument("-m", "--message", default="", help="the reason, which `status` shows")
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Pause what the arguments name, and print how many tasks wait now."""
    scope, name = scopes.wanted(args)
    answer = controlling.ask(args.config, Pause(scope=scope, name=name, message=args.message))
    return controlling.show(answer, lines(scope, name, answer), json=args.json)


def lines(scope: Scope, name: str, answer: Paused) -> list[str]:
    """Return what the answer says."""
    judged = answer.judged
    only = f"; {judged:,} of them need it only as a judge, and work until then" if judged else ""
    return [
        f"{words.named(scope, name)} is paused: {words.counted(answer.parked, 'task')}{only}",
        f"To go on: batchd resume {words.option(scope, name)}",
    ]
