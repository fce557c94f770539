"""Keys, as a terminal sends them: bytes become names."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping

#: A key's sequence: CSI or SS3, whole.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O[@-~])")
#: One that may still become one.
_BEGUN = re.compile(r"\x1b(\[[0-9;?]*[ -/]*|O)?\Z")
_NAMES: Mapping[str, str] = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
    "[5~": "page up",
    "[6~": "page down",
    "[Z": "back tab",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "OH": "home",
    "OF": "end",
}
_LETTERS: Mapping[str, str] = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x0c": "redraw",
    "\x15": "clear",
}


class KeyDecoder:
    """Takes bytes as they come, and gives the keys that they mean;
    what it does not know it drops.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def pending(self) -> bool:
        """Whether a sequence has begun: an Esc alone, if nothing follows."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are whole now."""
        self._rest += self._decoder.decode(data)
        return [*self._read(last=False)]

    def flush(self) -> list[str]:
        """Return what was begun as what it is: nothing followed."""
        return [*self._read(last=True)]

    def _read(self, *, last: bool) -> Iterator[str]:
        while text := self._rest:
            if found := _SEQUENCE.match(text):
                self._rest = text[found.end() :]
                if name := _NAMES.get(found[1]):
                    yield name
            elif _BEGUN.match(text) and not last:
                return
            elif text[0] == "\x1b":
                self._rest = "" if last else text[1:]
                yield "escape"
            else:
                self._rest = text[1:]
                if name := _LETTERS.get(text[0], text[0] if text[0].isprintable() else ""):
                    yield name
