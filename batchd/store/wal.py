"""The write-ahead log of SQLite: whether it goes on behind the place where SQLite stops reading.

SQLite stops at the first frame that does not add up, in silence. After a crash that is right for
one commit, which had not been synced: whatever lies behind it is of the log's earlier rounds.
Commits of this round behind it can only come from damage.
The format: https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import struct
from operator import mul
from pathlib import Path

#: How a log begins, but for its last bit, which gives the order of bytes in its checksums.
MAGIC = 0x377F0682
HEADER = 32
_FRAME = 24
#: What is summed up of a frame's head.
_SUMMED = 8
_WORD = (1 << 32) - 1
#: What pages can be.
_SIZES = frozenset(1 << power for power in range(9, 17))
#: A log of more bytes is not looked through, which takes 25 ms a megabyte.
_MAX_SEARCHED_BYTES = 256 << 20


def beside(path: Path) -> Path:
    """Return the log of the database at ``path``."""
    return path.with_name(f"{path.name}-wal")


def commits_beyond_damage(log: Path) -> int:
    """Return how many commits of a log SQLite passes over because of damage before them;
    0: as far as one can see, none.
    """
    try:
        data = log.read_bytes() if log.stat().st_size <= _MAX_SEARCHED_BYTES else b""
    except FileNotFoundError:
        return 0
    return beyond_damage(data)


def beyond_damage(data: bytes) -> int:
    """Do so for what a log holds."""
    if len(data) < HEADER:
        return 0
    magic, _, size, _ = struct.unpack_from(">4I", data)
    if magic & ~1 != MAGIC or size not in _SIZES:
        return 0  # it has nothing, or opening it says what is wrong
    sums = _Sums("<" if magic == MAGIC else ">", size)
    at, total = HEADER, sums.plain(data[:_FRAME])
    if struct.pack(">2I", *total) == data[_FRAME:HEADER]:
        salt, at = data[16:24], _end(data, sums, total)
    elif len(data) >= HEADER + _FRAME:
        salt = data[
            HEADER + 8 : HEADER + 16
        ]  # the head is damaged; its frames say which round it was
    else:
        return 0
    step, commits = _FRAME + size, 0
    for start in range(at, len(data) - step + 1, step):
        commits += data[start + 8 : start + 16] == salt and any(data[start + 4 : start + 8])
    return max(0, commits - 1)  # one may be what a crash cut off


def _end(data: bytes, sums: _Sums, total: tuple[int, int]) -> int:
    """Return where SQLite stops reading."""
    at, step = HEADER, _FRAME + sums.size
    while at + step <= len(data) and data[at + 8 : at + 16] == data[16:24]:
        total = sums.frame(total, data[at : at + _SUMMED] + data[at + _FRAME : at + step])
        if struct.pack(">2I", *total) != data[at + 16 : at + _FRAME]:
            break
        at += step
    return at


class _Sums:
    """The log's checksums.

    Each step of theirs is linear: a frame takes two products of vectors, not a loop.
    """

    def __init__(self, order: str, size: int) -> None:
        self.size = size
        self._order = order
        count = (_SUMMED + size) // 4
        self._words = struct.Struct(f"{order}{count}I")
        # What a word adds to both sums in the end, from the last pair of words to the first.
        first: list[int] = []
        second: list[int] = []
        matrix = (1, 0, 0, 1)
        for _ in range(count // 2):
            a, b, c, d = matrix
            # A pair adds (x, x + y): s0 += x + s1; s1 += y + s0.
            first += [b, a + b]
            second += [d, c + d]
            matrix = ((a + b) & _WORD, (a + 2 * b) & _WORD, (c + d) & _WORD, (c + 2 * d) & _WORD)
        self._first = [w & _WORD for w in reversed(first)]
        self._second = [w & _WORD for w in reversed(second)]
        self._before = matrix

    def plain(self, data: bytes) -> tuple[int, int]:
        """Return the sums of a few words, from nothing."""
        s0 = s1 = 0
        words = struct.unpack(f"{self._order}{len(data) // 4}I", data)
        for x, y in zip(words[::2], words[1::2], strict=True):
            s0 = (s0 + x + s1) & _WORD
            s1 = (s1 + y + s0) & _WORD
        return s0, s1

    def frame(self, total: tuple[int, int], data: bytes) -> tuple[int, int]:
        """Return the sums once a frame is added to them."""
        words, (a, b, c, d), (s0, s1) = self._words.unpack(data), self._before, total
        return (
            (a * s0 + b * s1 + sum(map(mul, words, self._first))) & _WORD,
            (c * s0 + d * s1 + sum(map(mul, words, self._second))) & _WORD,
        )
