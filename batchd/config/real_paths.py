"""Real paths of folders that may lie on disks that hang, as over a lost network."""

from __future__ import annotations

import os
from collections.abc import Sequence

from batchd import answering


def real(paths: Sequence[str]) -> list[str]:
    """Return where paths lead, links followed; of what does not answer in time, the path itself.

    Blocks for seconds at most.
    """
    silent = answering.silent(paths)
    # Without an answer no link is followed.
    return [os.path.abspath(p) if p in silent else os.path.realpath(p) for p in paths]  # noqa: PTH100
