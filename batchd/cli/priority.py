"""``batchd priority``: lets batches or tasks go before others, or behind them."""

from __future__ import annotations

import argparse

from batchd import words
from batchd.cli.support import controlling
from batchd.control import Priority


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    controlling.targets(parser)
    # After the targets: argparse would take "-5" for an option otherwise.
    parser.add_argument(
        "priority", type=int, metavar="N", help="higher numbers go first; the default is 0"
    )


def run(args: argparse.Namespace) -> int:
    """Change it for all tasks that have not ended."""
    given = controlling.checked(args.target)
    answer = controlling.ask(args.config, Priority(target=given, priority=args.priority))
    count = words.counted(answer.tasks, "task")
    line = f"{words.listed(given)}: {count} with priority {args.priority}"
    return controlling.show(answer, [line], json=args.json)
