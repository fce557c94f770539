"""What a terminal can show: text without anything that steers it,
in pieces that fit, in its own letters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from batchd.log import escape

#: What stands for our few signs where there is only ASCII; each as wide as the sign.
_ASCII = str.maketrans("│─█░▸▾…·✓✗◷○‖→≤↑↓", "|-#.>v~-+x@o=><^v")
#: Colours and erasures, as programs print them where they believe to be on a terminal.
_DRESSING = re.compile("\x1b\\[[0-9;:]*[mK]")
#: Every so many columns a tab leads to one.
_TAB = 8


def ascii_only(encoding: str) -> bool:
    """Return whether to do without other letters:
    the locale has none, or the user asked for that of C.
    """
    wanted = os.environ.get("LC_ALL") in {"C", "POSIX"}
    return wanted or encoding.lower().replace("-", "") not in {"utf8", "utf8sig"}


def plain(text: str) -> str:
    """Return our own signs in ASCII; whatever else there is becomes a question mark."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def neutral(text: str) -> Iterator[str]:
    r"""Yield the lines of a text from any source, without anything that steers a terminal.

    Colours are dropped, of a line that was written over again and again the last state is kept,
    tabs become spaces, and every other control character is shown as ``\x1b`` and the like.
    """
    for line in text.rstrip().split("\n"):
        last = line
        if "\r" in line:
            last = next((part for part in reversed(line.split("\r")) if part.strip()), "")
        yield escape(_DRESSING.sub("", last).expandtabs(_TAB))
