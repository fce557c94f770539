"""``batchd top``: how things stand, live, on a terminal; and the keys to step in."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from batchd.cli.display import conversation_lines, formatting
from batchd.errors import UsageError

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 86_400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "`?` lists the keys. `batchd top` only looks and gives orders: the daemon goes on when it ends."
    parser.add_argument(
        "-i", "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (1)"
    )
    parser.add_argument("--once", action="store_true", help="print one picture, also into a pipe")


def run(args: argparse.Namespace) -> int:
    """Show it until somebody has seen enough."""
    if not _MIN_INTERVAL_S <= args.interval <= _MAX_INTERVAL_S:
        raise UsageError(
            f"--interval is from {_MIN_INTERVAL_S} to {_MAX_INTERVAL_S:,.0f} seconds, not {args.interval:g}"
        )
    state = formatting.state_directory(args.config)
    if args.once:
        return _print(state, 0)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "top needs a terminal; `batchd top --once` prints one picture, and `batchd status` has a form for programs"
        )
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown", ""}:
        raise UsageError(
            "this terminal (TERM) cannot be drawn on; `batchd top --once` prints one picture, and `batchd status` shows more"
        )
    if conversation_lines.ascii_only(sys.stdout.encoding):
        return _print(state, args.interval)
    from batchd.cli.top import app  # Textual, which nothing else loads

    return app.run(state, args.interval)


def _print(state: Path, interval_s: float) -> int:
    """Print how things stand; with an interval, over and over until Ctrl-C, without keys: in a
    locale without UTF-8 there are no lines and boxes to draw windows with.
    """
    from rich.console import Console

    from batchd.cli.top import picture, watching
    from batchd.observe.status import Observer

    with Observer(state, lately=watching.LATELY) as observer:
        while True:
            width = formatting.terminal_width()
            colours = sys.stdout.isatty() and formatting.colours_wanted()
            console = Console(
                width=width,
                force_terminal=sys.stdout.isatty(),
                color_system="standard" if colours else None,
                highlight=False,
            )
            with console.capture() as capture:
                lines = picture.once(observer.look(), width)
                for line in lines[: shutil.get_terminal_size().lines - 1] if interval_s else lines:
                    console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
            shown = "\n".join(line.rstrip() for line in capture.get().splitlines())
            if conversation_lines.ascii_only(sys.stdout.encoding):
                shown = conversation_lines.plain(shown)
            print(f"\x1b[H\x1b[2J{shown}" if interval_s else shown, flush=True)
            if not interval_s:
                return 0
            time.sleep(interval_s)
