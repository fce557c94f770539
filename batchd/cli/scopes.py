"""What can be paused and resumed, as the command line names it."""

from __future__ import annotations

import argparse

from batchd.cli import common
from batchd.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("target", nargs="?", metavar="BATCH[/TASK]")
    which.add_argument("--all", action="store_true", help="everything")
    which.add_argument("--provider", metavar="NAME", help="what needs this provider's models")
    which.add_argument("--model", metavar="PROVIDER/MODEL", help="what needs this model")


def scope(args: argparse.Namespace) -> tuple[str, str]:
    """Return the scope and the name that are meant; both are empty where none is named."""
    if args.all:
        return "all", ""
    if args.provider is not None:
        return "provider", args.provider
    if args.model is not None:
        return "model", args.model
    if args.target is None:
        return "", ""
    batch, task = common.split_target(args.target)
    return ("task", f"{batch}/{task}") if task else ("batch", batch)


def wanted(args: argparse.Namespace) -> tuple[str, str]:
    """Return a scope that must be named. Raises ``UsageError``."""
    found = scope(args)
    if not found[0]:
        raise UsageError(
            "say what: BATCH, BATCH/TASK, --provider NAME, --model PROVIDER/MODEL, or --all"
        )
    return found
