"""Real paths of folders that may lie on disks that hang, as over a lost network."""

from __future__ import annotations

import os
from collections.abc import Sequence

from batchd import silent_paths


def real(paths: Sequence[str]) -> list[str]:
    """Return where paths lead, links followed; of what does not answer in time, the path itself.

    Blocks for seconds at most.
    """
    hanging = silent_paths.among(paths)
    # Without an answer no link is followed.
    return [os.path.abspath(p) if p in hanging else os.path.realpath(p) for p in paths]
