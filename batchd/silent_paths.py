"""Paths that may not answer, as on a disk over a lost network: who asks waits a few seconds,
and a thread for what hangs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable

from batchd.errors import NotPossibleError

#: A disk under load may take seconds.
_PATIENCE_S = 3.0
#: One that has to wake up takes longer; what fails for it would have worked.
_REFUSED_S = 10.0

#: What a user can do about a folder that does not answer.
FIX = "check the server of its disk, or unmount that (`umount --lazy`)"


class _Question(threading.Thread):
    """A question to a path. The kernel ends one that hangs, with the process."""

    def __init__(self, path: str) -> None:
        super().__init__(name="answers", daemon=True)
        self.path = path
        self._begun = time.monotonic()
        # Another thread may wait before this one has started, which `join` refuses.
        self._answered = threading.Event()

    def run(self) -> None:
        """Ask what no file system answers from memory; any answer will do."""
        with contextlib.suppress(OSError):
            os.statvfs(self.path)
        self._answered.set()

    def hangs(self, patience_s: float) -> bool:
        """Wait for the answer until so long after the question."""
        return not self._answered.wait(max(0.0, self._begun + patience_s - time.monotonic()))


def refuse(*paths: str) -> None:
    """Return if all of these paths answer. Blocks for seconds at most.

    Raises ``NotPossibleError``, with the fix, for one that does not.
    """
    for path in among(paths, _REFUSED_S):
        raise NotPossibleError(f"{path} does not answer: {FIX}")


def among(paths: Iterable[str], patience_s: float = _PATIENCE_S) -> list[str]:
    """Return which of these paths do not answer in time. Blocks.

    One that was asked before, and still has not answered, is not asked again:
    it costs one thread, however often somebody wants to know.
    """
    known = {each.path: each for each in threading.enumerate() if isinstance(each, _Question)}
    asked: list[_Question] = []
    for path in dict.fromkeys(paths):
        question = known.get(path)
        if question is None:
            question = _Question(path)
            try:
                question.start()
            except RuntimeError:  # the system has no thread to give: then it is not known
                continue
        asked.append(question)
    return [question.path for question in asked if question.hangs(patience_s)]
