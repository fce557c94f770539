"""A batch's folder is taken away."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from batchd import trees
from batchd.log import escape
from batchd.spool import files
from batchd.spool.outbox import SUMMARY

#: A summary has a line a task.
_SUMMARY_BYTES = 256 << 20
_REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """The folder of a published batch."""

    #: The outbox that it lies in.
    outbox: str
    #: The batch's, which is its own.
    name: str

    def size(self) -> int | None:
        """Return what it takes on disk, in bytes, as far as it can be read;
        None where it is not there.
        """
        path = f"{self.outbox}/{self.name}"
        try:
            top = os.open(path, trees.OPEN)
        except OSError:
            return 0 if os.path.lexists(path) else None
        try:
            return trees.size(top)[0]
        finally:
            os.close(top)

    def remove(self) -> str:
        """Take it away; return why it could not be, wholly; empty: it is gone.

        It must be a folder, with this batch's summary in it, or with no more than a report that was
        made afterwards: one that somebody put in its place is left alone.
        Links in it are removed, not followed. What is mounted in it is left alone.
        """
        shown = escape(f"{self.outbox}/{self.name}")
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            return f"{shown} is not the folder of a batch"
        try:
            outbox = os.open(self.outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{shown}: {error.strerror}"
        try:
            top = os.open(self.name, trees.OPEN, dir_fd=outbox)
            try:
                bare = os.listdir(top) == [_REPORT]
                if not (bare or _is_of(top, self.name)):
                    return f"{shown} is left alone: it does not hold the summary of {self.name}"
                # Its summary last:
                # with it, an interrupted removal is known for what it is, and can go on.
                trees.TreeRemoval(top, last=_REPORT if bare else SUMMARY).run()
            finally:
                os.close(top)
            os.rmdir(self.name, dir_fd=outbox)
        except FileNotFoundError:
            return ""
        except NotADirectoryError:
            return f"{shown} is left alone: it is a link or a file"
        except OSError as error:
            where = f" ({escape(os.fsdecode(error.filename))})" if error.filename else ""
            return f"{shown} could not be removed: {error.strerror}{where}"
        finally:
            with contextlib.suppress(OSError):
                os.fsync(outbox)
            os.close(outbox)
        return ""


def _is_of(top: int, name: str) -> bool:
    """Return whether a folder holds the summary of the batch ``name``."""
    try:
        found = json.loads(files.content(SUMMARY, _SUMMARY_BYTES, dir_fd=top) or b"")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("batch") == name
