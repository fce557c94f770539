"""``batchd resume``: lets go on what waits, whatever it waits for."""

from __future__ import annotations

import argparse

from batchd.cli import controlling, scopes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Without arguments, everything that is parked goes on, but what is uncertain after `batchd restore`: "
        "name that. A provider that was parked by itself "
        "is tried with one call first, its key read again; where that fails, it stays parked."
    )
    scopes.arguments(parser)
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Have it go on, and say whether anything was parked."""
    scope, name = scopes.scope(args)
    answer = controlling.ask(args.config, "resume", scope=scope, name=name)
    what = scopes.named(scope, name)
    line = f"{what} goes on" if answer["resumed"] else f"{what}: nothing was parked"
    return controlling.tell(answer, [line], json=args.json)
