"""Makes what is made from the code: completions, the man page, JSON schemas.

`make generated`; a test holds them current. The two packages that make them are for development
alone, so this is no part of what is installed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

from batchd.cli import parser, shipped
from batchd.version import __version__

#: Below ``data/``.
_MAN = "man/batchd.1"
#: What words for arguments a shell completes from the disk.
_COMPLETED = {"FILE": shtab.FILE, "PATH": shtab.FILE, "BACKUP": shtab.FILE, "DIR": shtab.DIRECTORY}
#: … and from the store.
_NAMES = {
    "bash": "_batchd_names",
    "zsh": "_batchd_names",
    "fish": "(batchd completion names (commandline -ct) 2>/dev/null)",
    "preamble": {
        "bash": '_batchd_names() { batchd completion names "$1" 2>/dev/null; }',
        "zsh": '_batchd_names() { compadd -- ${(f)"$(batchd completion names "$PREFIX" 2>/dev/null)"}; }',
    },
}
#: As long are lines wherever they are made.
_WIDTH = 100


def made() -> Mapping[str, str]:
    """Return each file below ``data/`` with its text, which is the same on any machine and day."""
    files = {
        f"completions/{name}": shtab.complete(_completed(), shell=shell)
        for shell, name in shipped.COMPLETIONS.items()
    }
    files[_MAN] = _man_page()
    for kind in shipped.KINDS:
        files[f"schemas/{kind}.json"] = shipped.text(kind)
    return files


def _completed() -> argparse.ArgumentParser:
    """Return the parser with what a shell completes from the disk or the store marked as such."""
    whole = parser()
    for each in (whole, *_commands(whole)):
        for action in each._actions:
            if str(action.metavar).startswith("BATCH"):
                action.complete = _NAMES  # type: ignore[attr-defined]
            elif shipped.NAMES in (action.choices or ()):
                action.choices = [*shipped.COMPLETIONS]
            elif action.metavar in _COMPLETED:
                action.complete = _COMPLETED[str(action.metavar)]  # type: ignore[attr-defined]
    return whole


def _man_page() -> str:
    """Return the man page.

    What stands below a command's ``--help`` stands in place
    of its description, which repeats its line.
    """
    whole = parser()
    # Of the whole, the codes alone: examples stand with the commands.
    whole.epilog = (whole.epilog or "").partition("\n\n")[0]
    for each in (whole, *_commands(whole)):
        each.formatter_class = functools.partial(argparse.HelpFormatter, width=_WIDTH)
    for command in _commands(whole):
        command.description, command.epilog = command.epilog, None
        # Versions of Python break it at other places.
        command.usage = " ".join(command.format_usage().removeprefix("usage: ").split())
    about = {
        "version": __version__,
        "manual_title": "batchd",
        "description": "a print spooler for LLM agents",
    }
    page = Manpage(whole, _data=about, format="single-commands-section")
    page.date = ""
    return str(page).replace("\n.SH COMMENTS\n", "\n.SH EXIT STATUS\n")


def _commands(whole: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


if __name__ == "__main__":
    for name, text in made().items():
        file = Path(sys.argv[1], name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
