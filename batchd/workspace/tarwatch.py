"""Watches a tar on its way into a pack:
it has what was asked for and nothing else, whatever the task does meanwhile.

The daemon looks at what comes in the same way,
and has no patience with a worker that sends anything else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from batchd.errors import TarError, cut
from batchd.workspace import tarwalk
from batchd.workspace.directory_listing import MAX_ENTRIES, Listing

#: Of each kind of thing, the letters by which a tar may say it:
#: a file or a link that has several names is also a hard link.
_LETTERS = {stat.S_IFREG: "01", stat.S_IFLNK: "21", stat.S_IFDIR: "5"}


class TarWatch:
    """One tar."""

    def __init__(self, asked: Listing, hears: Callable[[bytes], None]) -> None:
        """``asked``: what is to be in it. ``hears``: takes its bytes."""
        self._asked = asked
        self._hears = hears
        #: What has not come yet, of what was asked for.
        self.missing = set(asked)
        self._ended = False
        self._wrong: TarError | None = None

    def passed(self, parts: Iterator[bytes]) -> None:
        """Let a tar through, up to the first thing in it that should not be there.

        Raises what ``hears`` raises.
        """
        try:
            for entry in tarwalk.entries(self._through(parts), 2 * MAX_ENTRIES):
                self._come(entry)
        except TarError as error:
            self._wrong = error

    def _through(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            self._hears(part)
            yield part
        self._ended = True

    def _come(self, entry: tarwalk.TarEntry) -> None:
        path = os.fsdecode(entry.path)
        its = self._asked.get(path)
        if its is None:
            raise TarError(f"{cut(path)} was not asked for, but came")
        if entry.kind not in _LETTERS[stat.S_IFMT(its[0])]:
            raise TarError(f"{cut(path)} has become another kind of thing while it was packed")
        self.missing.discard(path)

    def insist(self, *, ended: bool = False) -> None:
        """Raise ``TarError`` for what should not be there;
        a tar that ended too soon only counts with ``ended``.
        """
        if self._wrong is not None and (ended or not self._ended):
            raise self._wrong
