"""``batchd backup``: a copy of the store that ``batchd restore`` takes; the daemon may run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from batchd.cli.display import formatting
from batchd.errors import UsageError
from batchd.log import escape


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "target",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the file to write (default: a name with the time, beside the store)",
    )


def run(args: argparse.Namespace) -> int:
    """Copy the store, and say where to."""
    from batchd.store import restoring  # `--help` need not load SQLite

    path = formatting.store_path(formatting.state_directory(args.config))
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = args.target or path.with_name(f"{path.name}.{stamp}.bak")
    if target.is_dir():
        raise UsageError(f"{escape(str(target))} is a directory: name a file in it")
    if not target.parent.is_dir():
        folder = escape(str(target.parent))
        raise UsageError(f"{folder} is not a directory: make it, or name another file")
    size = restoring.back_up(path, target)
    print(escape(f"{target}: {size:,} bytes"))
    return 0
