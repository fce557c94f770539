"""A pack that comes from a worker elsewhere, part by part:
it is believed once it is whole, and is what it is called.
"""

from __future__ import annotations

from batchd import wire
from batchd.errors import WorkspaceError
from batchd.records import Pack
from batchd.workspace import tarwalk
from batchd.workspace.directory_listing import MAX_ENTRIES
from batchd.workspace.packfile import plain_limit
from batchd.workspace.packs import Shelf, sound


class Coming:
    """One pack. Its methods block."""

    def __init__(self, shelf: Shelf, pack: Pack, most: int) -> None:
        """``most``: the bytes of the files in it.

        Raises ``WorkspaceError`` for one that cannot be.
        """
        if not sound(pack) or pack.plain > plain_limit(most):
            raise WorkspaceError("there can be no such pack")
        self._shelf = shelf
        self._pack = pack
        self._draft = shelf.draft()
        self._size = 0

    @property
    def digest(self) -> str:
        """What it is called."""
        return self._pack.digest

    def add(self, pack: Pack, offset: int, data: bytes) -> bool:
        """Take the next part; return whether the pack is whole, and durable.

        Raises ``OSError``, ``WorkspaceError``.

        A part that the disk refused may come again.
        """
        if pack == self._pack and offset + len(data) == self._size == pack.size:
            return True  # once more, since what follows from it was refused
        if pack != self._pack or offset != self._size or not 0 < len(data) <= wire.MAX_PART:
            raise WorkspaceError("it is not the next part")
        if self._size + len(data) > pack.size:
            raise WorkspaceError("it is longer than announced")
        with self._draft.open("r+b" if self._size else "wb") as file:
            self._draft.chmod(0o600)
            file.seek(self._size)
            file.write(data)
        if self._size + len(data) == pack.size:
            self._shelf.keep(self._draft, pack)
            self._look()
        self._size += len(data)
        return self._size == pack.size

    def _look(self) -> None:
        try:
            with self._shelf.reading(self._pack) as reading:
                for names in (reading.removed(), reading.folders()):
                    tarwalk.check_names(names, MAX_ENTRIES)
                tarwalk.check(reading.tar(), 2 * MAX_ENTRIES)
        except WorkspaceError:
            self._shelf.path(self._pack).unlink(missing_ok=True)
            raise

    def drop(self) -> None:
        """Remove what has come."""
        self._draft.unlink(missing_ok=True)
