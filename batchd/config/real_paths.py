"""Real paths of folders that may lie on disks that hang, as over a lost network."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

#: A disk under load may take seconds.
_PATIENCE_S = 3.0


def real(paths: Sequence[str]) -> list[str]:
    """Return where paths lead, links followed; of what does not answer in time, the path itself.

    The kernel ends the thread of what hangs, with the process.
    """
    found = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100 (no link is followed)

    def look() -> None:
        for path in paths:
            found[path] = os.path.realpath(path)

    looking = threading.Thread(target=look, name="real paths", daemon=True)
    try:
        looking.start()
    except RuntimeError:  # the system has no thread to give
        look()
    else:
        looking.join(_PATIENCE_S)
    return [found[path] for path in paths]
