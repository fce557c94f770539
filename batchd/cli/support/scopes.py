"""What can be paused and resumed, as the command line names it."""

from __future__ import annotations

import argparse

from batchd.cli.display import formatting
from batchd.errors import UsageError
from batchd.records import Scope


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("target", nargs="?", metavar="BATCH[/TASK]")
    which.add_argument("--all", action="store_true", help="everything")
    which.add_argument("--provider", metavar="NAME", help="what needs this provider's models")
    which.add_argument("--model", metavar="PROVIDER/MODEL", help="what needs this model")


def scope(args: argparse.Namespace) -> tuple[Scope | None, str]:
    """Return the scope and the name that are meant; None, and an empty name, where none is."""
    if args.all:
        return Scope.ALL, ""
    if args.provider is not None:
        return Scope.PROVIDER, args.provider
    if args.model is not None:
        return Scope.MODEL, args.model
    if args.target is None:
        return None, ""
    batch, task = formatting.split_target(args.target)
    return (Scope.TASK, f"{batch}/{task}") if task else (Scope.BATCH, batch)


def wanted(args: argparse.Namespace) -> tuple[Scope, str]:
    """Return a scope that must be named. Raises ``UsageError``."""
    found, name = scope(args)
    if found is None:
        raise UsageError(
            "name one: BATCH, BATCH/TASK, --provider NAME, --model PROVIDER/MODEL, or --all"
        )
    return found, name
