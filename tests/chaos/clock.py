"""A clock of one's own: every Python that is started
with a folder on its path reads the time from there.
"""

from __future__ import annotations

import struct
from pathlib import Path

#: Found by every Python of the daemon at its start: its clock is ahead by what a file says.
_CLOCK = """
import mmap, struct, time
_file = open({file!r}, "rb")
_ahead = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + struct.unpack("d", _ahead[:8])[0]
time.time_ns = lambda: _time_ns() + int(struct.unpack("d", _ahead[:8])[0]) * 10**9
"""


class Clock:
    """The clock of all whose ``PYTHONPATH`` begins with a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ahead"
        self._file.write_bytes(struct.pack("d", 0.0))
        self.ahead_s = 0.0
        (folder / "sitecustomize.py").write_text(_CLOCK.format(file=str(self._file)))

    def set(self, ahead_s: float) -> None:
        """Let it be ahead by so much; behind, where that is negative."""
        self.ahead_s = ahead_s
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", ahead_s))
