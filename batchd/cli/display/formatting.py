"""What commands share: how numbers, names and facts look, and nothing that takes time to load."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchd import config, silent_paths, words
from batchd.config import trust
from batchd.console import clipped, columns_of, hanging, wrapped
from batchd.errors import ConfigError
from batchd.log import escape, escape_json

if TYPE_CHECKING:
    from batchd.store.queries import StoreReader

#: How each end of a task is marked.
MARKS = {"completed": "✓", "timeout": "◷", "error": "✗", "cancelled": "○"}
#: Escape sequences of the few colours in use.
_COLOURS = {
    **dict.fromkeys(("completed", "ok"), "32"),
    **dict.fromkeys(("rejected", "error", "failed"), "31"),
    **dict.fromkeys(("parked", "timeout", "cancelled"), "33"),
    # … and their words, of views/view.py, which takes time to load.
    **dict.fromkeys(("waiting", "not accepted or over a limit"), "33"),
    **dict.fromkeys(("not accepted", "out of calls", "out of tokens"), "33"),
    **dict.fromkeys(("out of money", "out of time"), "33"),
    "running": "36",
}


def print_json(value: Any) -> None:
    """Print a value for other programs."""
    print(escape_json(json.dumps(value, indent=2, ensure_ascii=False)))


def complain(line: str) -> None:
    """Print a line for people on stderr, beside the answer; an empty one is left out."""
    if line:
        width = columns_of(sys.stderr.fileno()) if sys.stderr.isatty() else sys.maxsize
        print(*hanging(escape(line), width), sep="\n", file=sys.stderr)


def say(*lines: str) -> None:
    """Print lines for people, neutralised:
    wrapped by words where a terminal is narrower, in a pipe as they are.
    """
    for line in map(escape, lines):
        print(*hanging(line, room()), sep="\n")


def day(text: str) -> dt.date:
    """Return a day in UTC as an argument names it.

    Raises what ``argparse`` reports as wrong use.
    """
    today = dt.datetime.now(dt.UTC).date()
    named = {"today": today, "yesterday": today - dt.timedelta(days=1)}
    try:
        return named.get(text) or dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{escape(text)} is not a day: write 2026-11-24, today or yesterday"
        ) from None


def target(reader: StoreReader, given: str | None) -> tuple[str, str]:
    """Return the batch and the task of ``BATCH[/TASK]``;
    of nothing, the newest batch, empty: there is none.
    """
    if given:
        return words.split_target(given)
    newest = reader.batches(limit=1)
    return (newest[0].batch.name if newest else "", "")


def room() -> int:
    """Return the columns that a line may take: the terminal's, and in a pipe all that it needs."""
    return terminal_width() if sys.stdout.isatty() else sys.maxsize


def terminal_width() -> int:
    """Return the columns to write for: the terminal's, 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def colours_wanted() -> bool:
    """Return whether colours are wanted: they are, unless NO_COLOR is set (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def painted(text: str, code: str | None) -> str:
    """Return ``text`` as an escape sequence has it look on a terminal; in a pipe as it is."""
    wanted = code and text and sys.stdout.isatty() and colours_wanted()
    return f"\x1b[{code}m{text}\x1b[0m" if wanted else text


def coloured(text: str, status: str) -> str:
    """Return ``text`` in the colour of a status, or of a word for it, on a terminal."""
    return painted(text, _COLOURS.get(status))


def settings(file: Path | None) -> config.Config:
    """Return the configuration; where there is none, say on stderr which spool is meant.

    Raises ``NotPossibleError`` where the spool's state directory does not answer.
    """
    found = config.load(file)
    silent_paths.refuse(found.paths.state)
    if not found.file:
        mine = found.paths.is_own(found.environ)
        place = (
            f"your own, {trust.own_spool(found.environ)}"
            if mine
            else f"that of {found.paths.state}"
        )
        complain(f"batchd: no configuration is found; the spool is {place}")
    return found


def state_directory(file: Path | None) -> Path:
    """Return the state directory that a configuration names.

    Of one that is broken, its ``[paths]`` will do, and a warning: a daemon may be at work under
    what it read before, and must be found. Raises ``ConfigError`` where not even they are known.
    """
    try:
        return Path(settings(file).paths.state)
    except ConfigError as error:
        try:
            state = Path(config.load_paths(file).state)
        except ConfigError:
            raise error from None
        silent_paths.refuse(str(state))
        print(
            f"batchd: {error}\n"
            "batchd: only its [paths] are used here; a running daemon keeps the configuration that it has",
            file=sys.stderr,
        )
        return state


def store_path(state: Path) -> Path:
    """Return where the store lies."""
    return state / "batchd.db"


_GAP = "  "
#: Columns of a fact's name at the least: so lists of facts look alike.
_NAME = 9
#: Of a prompt, so many characters stand in a pipe.
_LINE = 100


def one_line(text: str) -> str:
    """Return the beginning of a prompt, or of what a model said, as one line."""
    return clipped(" ".join(text[: 4 * _LINE].split()), _LINE)


def facts(named: Mapping[str, str], margin: str = "") -> Iterator[str]:
    """Yield what is known of one thing, a fact a line, further lines below its beginning;
    empty facts are left out.

    A fact of several lines keeps them.
    """
    width = max(_NAME, *(len(name) for name, fact in named.items() if fact))
    for name, fact in named.items():
        head = f"{margin}{name:<{width}}{_GAP}"
        for text in fact.splitlines():
            for piece in wrapped(escape(text.rstrip()), max(20, room() - len(head))):
                yield f"{head}{piece}".rstrip()
                head = " " * len(head)
