"""``batchd cancel``: the daemon ends a batch or a task; each task keeps a result that says so."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchd import config, control
from batchd.cli import common
from batchd.log import escape


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("target", metavar="BATCH[/TASK]")
    parser.add_argument("-m", "--message", default="", help="why; stands in the results")


def run(args: argparse.Namespace) -> int:
    """Ask the daemon, and say how many tasks it ended."""
    state = Path(config.load(args.config).paths.state)
    answer = control.request(state, "cancel", target=args.target, message=args.message)
    count = int(answer["cancelled"])
    print(escape(f"{args.target}: {common.counted(count, 'task')} cancelled"))
    return 0
