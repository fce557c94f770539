"""What lies in an inbox that no daemon watches: the files that one will take, and the rest."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from batchd import silent_paths
from batchd.spool.decoding import ENDINGS
from batchd.spool.settle import ignorable

#: Names that are remembered: a line has room for a few.
_MAX_NAMES = 1000


@dataclass(frozen=True, slots=True)
class LyingFiles:
    """What lies there, hidden and unfinished files apart."""

    #: How many files become batches, if what they hold is valid.
    taken: int = 0
    #: The names of files that are refused for their endings.
    refused: tuple[str, ...] = ()
    #: The names of what stays where it is: links, folders, pipes.
    left: tuple[str, ...] = ()
    #: Whether the inbox says so at all.
    answers: bool = True


def look(inbox: str) -> LyingFiles:
    """Return what lies in a folder; nothing where it cannot be read, or does not answer."""
    if silent_paths.among([inbox]):
        return LyingFiles(answers=False)
    taken, refused, left = 0, list[str](), list[str]()
    with contextlib.suppress(OSError), os.scandir(inbox) as entries:
        for entry in entries:
            if ignorable(entry.name):
                continue
            if not entry.is_file(follow_symlinks=False):
                left += [entry.name][: _MAX_NAMES - len(left)]
            elif Path(entry.name).suffix.lower() not in ENDINGS:
                refused += [entry.name][: _MAX_NAMES - len(refused)]
            else:
                taken += 1
    return LyingFiles(taken, tuple(sorted(refused)), tuple(sorted(left)))
