"""``batchd top``: how things stand, live, on a terminal; and the keys to step in."""

from __future__ import annotations

import argparse
import os
import sys

from batchd.cli.display import formatting
from batchd.errors import UsageError

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 86_400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "`?` lists the keys. `batchd top` only looks and gives orders: the daemon goes on when it ends."
    parser.add_argument(
        "-i",
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="between two looks (1)",
    )
    parser.add_argument("--once", action="store_true", help="print one picture, also into a pipe")


def run(args: argparse.Namespace) -> int:
    """Show it until somebody has seen enough."""
    if not _MIN_INTERVAL_S <= args.interval <= _MAX_INTERVAL_S:
        raise UsageError(
            f"--interval is from {_MIN_INTERVAL_S} to {_MAX_INTERVAL_S:,.0f} seconds, not {args.interval:g}"
        )
    state = formatting.state_directory(args.config)
    from batchd.cli.top import screen  # rich is slow to load

    if args.once:
        return screen.print_once(state)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "top needs a terminal; `batchd top --once` prints one picture, and `batchd status` has a form for programs"
        )
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown", ""}:
        raise UsageError(
            "this terminal (TERM) cannot be drawn on; `batchd top --once` prints one picture, and `batchd status` shows more"
        )
    return screen.run(state, args.interval)
