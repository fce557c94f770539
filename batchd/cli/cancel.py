"""``batchd cancel``: ends batches or tasks; each task keeps a result that says so."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from batchd import words
from batchd.cli.support import controlling
from batchd.control import Cancel, Cancelled, EndedBefore


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Tasks that have ended stay as they are, and are named. Exit code 0: something is "
        "cancelled now, or everything was cancelled before."
    )
    controlling.targets(parser)
    parser.add_argument("-m", "--message", default="", help="the reason, which the results show")


def run(args: argparse.Namespace) -> int:
    """Cancel batches or tasks, and print how many were ended, and what had ended before."""
    given = controlling.checked(args.target)
    answer = controlling.ask(args.config, Cancel(target=given, message=args.message))
    return controlling.show(answer, lines(given, answer), json=args.json)


def lines(given: Sequence[str], answer: Cancelled) -> list[str]:
    """Return what the answer says."""
    before = {each.target for each in answer.ended}
    names = [name for name in given if name not in before]
    count = words.counted(answer.cancelled, "task")
    return [
        *([f"{words.listed(names)}: {count} cancelled"] if names else ()),
        *map(_over, answer.ended),
    ]


def _over(ended: EndedBefore) -> str:
    """Return how a target ended before there was an order."""
    if not ended.counts:
        return f"{ended.target} was refused when it came: it has no tasks"
    if "/" in ended.target:
        return f"{ended.target} has ended already, as {' '.join(ended.counts)}"
    counts = ", ".join(f"{count:,} {status}" for status, count in ended.counts.items())
    return f"{ended.target} has ended already: {counts}"
