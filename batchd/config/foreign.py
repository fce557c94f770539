"""The test whether a config.toml that is merely found is batchd's at all:
many programs call theirs so.
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import fields
from pathlib import Path

import tomli

from batchd.config import operator_files
from batchd.config.sections import ConfigSections
from batchd.errors import Problem

#: Bytes of a file that is looked at before it is trusted.
_LOOKED_AT = 1 << 20
#: How near a misspelt table of ours comes to its name.
_SIMILAR_FROM = 0.75


def problem(file: Path) -> Problem | None:
    """Return that a file is another program's, and what to do; None: it may be batchd's.

    No table or key of it is one of ours, nor a misspelt one.
    Of what cannot be read this says nothing.
    """
    names = _names(file)
    ours = [f.name for f in fields(ConfigSections)]
    if not names or any(difflib.get_close_matches(n[:64], ours, 1, _SIMILAR_FROM) for n in names):
        return None
    why = "it belongs to another program: it has no table of batchd"
    fix = "run batchd in another directory (`batchd init DIR` makes a spool), or name its own configuration with --config or BATCHD_CONFIG"
    return Problem(str(file), why, fix)


def _names(file: Path) -> tuple[str, ...]:
    """Return the names at the top of a file, as far as they can be had: it may be anything."""
    try:
        return (*tomli.loads(operator_files.content(file, _examine).decode("utf-8-sig")),)
    except (OSError, ValueError, RecursionError):
        return ()


def _examine(status: os.stat_result) -> None:
    """Refuse what is no file, or a long one. Raises ``OSError``."""
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LOOKED_AT:
        raise OSError
