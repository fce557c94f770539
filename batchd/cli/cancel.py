"""``batchd cancel``: ends batches or tasks; each task keeps a result that says so."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from batchd.cli import controlling
from batchd.control import Cancel, Cancelled
from batchd.observe import words


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    controlling.targets(parser)
    parser.add_argument("-m", "--message", default="", help="why; stands in the results")


def run(args: argparse.Namespace) -> int:
    """Have them ended, and say how many there were."""
    given = controlling.checked(args.target)
    answer = controlling.ask(args.config, Cancel(target=given, message=args.message))
    return controlling.tell(answer, lines(given, answer), json=args.json)


def lines(given: Sequence[str], answer: Cancelled) -> list[str]:
    """Return what the answer says."""
    count = words.counted(answer.cancelled, "task")
    return [f"{words.listed(given)}: {count} cancelled"]
