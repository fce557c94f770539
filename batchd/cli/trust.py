"""``batchd trust``: in which directories a config.toml counts that batchd merely finds there."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from batchd.cli.display import formatting, tables
from batchd.config import finding, foreign, trust_lists
from batchd.errors import ConfigError, UsageError
from batchd.log import escape


@dataclasses.dataclass(frozen=True, slots=True)
class TrustedDirectory:
    """A directory on a list, and what is wrong with its configuration, if anything."""

    directory: str
    #: The number of a user whose files count there, beside root's and one's own.
    owner: int | None
    list: str
    problem: str


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", nargs="*", metavar="DIR", help="default: show what is trusted")
    parser.add_argument("--remove", action="store_true", help="stop trusting it")
    parser.add_argument(
        "--system",
        action="store_true",
        help=f"for all users: {trust_lists.SYSTEM / trust_lists.NAME}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.epilog = (
        "A config.toml decides where keys are sent and which programs run as you, and models write "
        "files. One in the working directory counts only if that directory is trusted. Trust "
        "covers its real path alone, not directories below it. --config and BATCHD_CONFIG "
        "need no trust."
    )


def run(args: argparse.Namespace) -> int:
    """Change a list, or show both; 3 where what is trusted now does not count all the same."""
    if args.remove and not args.directory:
        raise UsageError("name the directory: batchd trust --remove DIR")
    code = 0
    for directory in args.directory:
        if args.remove:
            name, file = trust_lists.remove(directory, os.environ, system=args.system)
            print(escape(f"{name} is no longer trusted by {file}"))
        else:
            code = max(code, _add(directory, system=args.system))
    if not args.directory:
        _show(as_json=args.json)
    return code


def _add(directory: str, *, system: bool) -> int:
    entry, file = trust_lists.add(directory, os.environ, system=system)
    also = "" if entry.owner is None else f", also where it belongs to user {entry.owner},"
    print(
        escape(
            f"{entry.directory} is trusted by {file}: its config.toml counts{also} when batchd runs there"
        )
    )
    problem = _problem(entry.directory)
    formatting.complain(problem and f"batchd: {problem}")
    return 3 if problem else 0


def _show(*, as_json: bool) -> None:
    lists = trust_lists.listings(os.environ)
    for known in lists:
        formatting.complain(f"batchd: {known.problem}" if known.problem else "")
    rows = [
        TrustedDirectory(entry.directory, entry.owner, str(known.file), _problem(entry.directory))
        for known in lists
        for entry in known.entries
    ]
    if as_json:
        formatting.print_json([dataclasses.asdict(row) for row in rows])
    elif rows:
        cells = [(row.directory, row.list, row.problem) for row in rows]
        print(*tables.table(("DIRECTORY", "LIST", "PROBLEM"), cells), sep="\n")
    else:
        print("No directory is trusted.")


def _problem(directory: str) -> str:
    """Return why the configuration in a directory does not count;
    empty: it does, or there is none yet.
    """
    file = Path(directory, trust_lists.CONFIG)
    try:
        if finding.stands(file):
            if problem := foreign.problem(file):
                return str(problem)
            finding.trusted(file, os.environ).content()
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return "" if Path(directory).is_dir() else "it is gone"
