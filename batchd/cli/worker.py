"""``batchd worker``: works for a daemon on another machine."""

from __future__ import annotations

import argparse
import sys

from batchd.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "It is not for people: a daemon starts it on the machines of [pool] machines, and speaks "
        "with it over standard input and output. It needs no configuration, ends with the daemon, "
        "and gives its tasks back after SIGTERM. See docs/cluster.md."
    )
    parser.add_argument("--sealed", default="", metavar="FILE", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Work until the daemon is gone, or this is to end."""
    if sys.stdin.isatty():
        raise UsageError(
            "it speaks with a daemon, and not with people: name what starts it in [pool] machines, "
            'as in {command = ["ssh", "node7", "batchd", "worker"]}'
        )
    from batchd.pool import elsewhere  # other commands do without

    return elsewhere.main(args.sealed)
