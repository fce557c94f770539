"""``batchd worker``: works for a daemon on another machine."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from batchd.errors import NotPossibleError, UsageError
from batchd.log import escape
from batchd.records import Has, tasks

#: No ticket is longer.
_MAX_TICKET_BYTES = 4096
_MOST_GB = 1e6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Example: `batchd invite node7 | ssh node7 batchd worker --join -`. It needs no "
        "configuration: the daemon sends everything. It ends when its connection to the "
        "daemon ends; after SIGTERM it gives its tasks back first."
    )
    parser.add_argument(
        "--join", required=True, metavar="FILE", help="the file of a ticket; - for standard input"
    )
    parser.add_argument(
        "--tied", action="store_true", help="end when the process that started it ends"
    )
    parser.add_argument(
        "--node",
        default="",
        metavar="NAME",
        help="the name of this machine; default: its host name",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="GPUs of this machine that tasks of this worker may use",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME",
        help="what tasks may need of this machine; repeat it for more labels",
    )
    parser.add_argument(
        "--cache",
        default="",
        metavar="DIR",
        help="where it keeps directories of tasks, unless all machines share them; default: ~/.cache/batchd",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        default=10.0,
        metavar="N",
        help="how much of them it keeps for later tasks, beside what tasks use; default: 10",
    )


def run(args: argparse.Namespace) -> int:
    """Work until the daemon is gone, or this is to end."""
    from batchd.pool import cache  # other commands do without
    from batchd.pool.joining import keeper, ticket

    node = args.node or socket.gethostname()
    if not (node.isprintable() and "/" not in node and " " not in node):
        raise UsageError(
            f"--node {escape(node)}: a name has no blanks, no slashes, no control characters"
        )
    for why in tasks.wrong(args.gpus, tuple(args.label)):
        raise UsageError(f"--gpus, --label: {why}")
    if not 0 <= args.cache_gb <= _MOST_GB:
        raise UsageError(f"--cache-gb {args.cache_gb:g}: a number of gigabytes, from 0 on")
    place = Path(args.cache) if args.cache else cache.default()
    way, most = ticket.parse(_read(args.join)), int(args.cache_gb * (1 << 30))
    has = Has(args.gpus, tuple(args.label))
    return keeper.keep(way, node, has, str(place.absolute()), most, tied=args.tied)


def _read(name: str) -> str:
    """Return what a ticket's file holds. Raises ``NotPossibleError``."""
    try:
        if name == "-":
            return sys.stdin.readline(_MAX_TICKET_BYTES)
        with Path(name).open(encoding="utf-8", errors="replace") as file:
            return file.readline(_MAX_TICKET_BYTES)
    except OSError as error:
        raise NotPossibleError(f"the ticket cannot be read: {error}") from None
