"""``batchd invite``: prints tickets; each lets one worker of another machine in."""

from __future__ import annotations

import argparse
import socket

from batchd.cli.support import controlling
from batchd.control import Invite
from batchd.errors import UsageError
from batchd.log import escape

_WHY = "only a running daemon makes tickets: start `batchd serve` with [pool] listen set"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Example: `batchd invite node7 | ssh node7 batchd worker --join -`. A ticket is a "
        "secret: a worker that has it, on the named machine, gets tasks and the keys that "
        "they need."
    )
    parser.add_argument(
        "machine", nargs="+", help="a name, an address, or a network like 10.0.0.0/24"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="N", help="how long it is valid; default: 10"
    )
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="how many tickets to make, a line each"
    )
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon for tickets, and print them."""
    addresses = tuple(a for machine in args.machine for a in _addresses(machine))
    order = Invite(addresses=addresses, minutes=args.minutes, count=args.count)
    answer = controlling.running(args.config, order, _WHY)
    return controlling.show(answer, answer.tickets, json=args.json)


def _addresses(machine: str) -> list[str]:
    """Return the addresses of a machine, or the network itself. Raises ``UsageError``."""
    if "/" in machine:
        return [machine]
    try:
        found = socket.getaddrinfo(machine, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = (
            f"{escape(machine)} is not a known machine: {getattr(error, 'strerror', None) or error}"
        )
        raise UsageError(f"{why}; name its address") from None
    return sorted({str(place[0]).partition("%")[0] for *_, place in found})
