"""Paths that are batchd's alone: no command may see anything of these files and folders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnPath:
    """A file or folder, and who says where it is."""

    #: The key that names it, as ``[paths] state``; or else what it is.
    key: str
    path: str
