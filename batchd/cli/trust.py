"""``batchd trust``: in which directories a config.toml counts that batchd merely finds there."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.config import trust
from batchd.errors import ConfigError, UsageError
from batchd.log import escape


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", nargs="*", metavar="DIR", help="default: show what is trusted")
    parser.add_argument("--remove", action="store_true", help="stop trusting it")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.epilog = (
        "A config.toml decides where keys are sent and which programs run as you, and models write "
        "files. One in the working directory counts only if that directory is trusted. Trust "
        "covers its real path alone, not directories below it. --config and BATCHD_CONFIG "
        "need no trust."
    )


def run(args: argparse.Namespace) -> int:
    """Change the list, or show it; 3 where what is trusted now does not count all the same."""
    if args.remove and not args.directory:
        raise UsageError("name the directory: batchd trust --remove DIR")
    code = 0
    for directory in args.directory:
        if args.remove:
            name, file = trust.remove(directory, os.environ)
            print(escape(f"{name} is no longer trusted by {file}"))
            continue
        real, owner, file = trust.add(directory, os.environ)
        also = "" if owner is None else f", also where it belongs to user {owner},"
        counts = f"its config.toml counts{also} when batchd runs there"
        print(escape(f"{real} is trusted by {file}: {counts}"))
        if problem := _problem(real):
            formatting.complain(f"batchd: {problem}")
            code = 3
    if args.directory:
        return code
    known = trust.listing(os.environ)
    if known.problem:
        formatting.complain(f"batchd: {known.problem}")
    if args.json or known.entries:
        # The owner: the number of a user whose files count there, beside root's and one's own.
        programs: tuple[Column[str], ...] = (
            Column("directory", str),
            Column("owner", known.entries.get),
            Column("list", lambda _: str(known.file)),
            Column("problem", _problem),
        )
        people: tuple[Column[str], ...] = (Column("DIRECTORY", str), Column("PROBLEM", _problem))
        if args.json:
            tables.table([*known.entries], programs, "json")
        else:
            tables.table([*known.entries], people)
    else:
        print("No directory is trusted.")
    return 0


def _problem(directory: str) -> str:
    """Return why the configuration in a directory does not count;
    empty: it does, or there is none yet.
    """
    file = Path(directory, trust.CONFIG)
    try:
        if trust.stands(file):
            trust.trusted(file, os.environ).content()
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if Path(directory).is_dir() else "it is gone"
