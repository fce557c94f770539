"""A task's conversation as lines of a terminal:
for `logs`, and for `top` while it follows a task.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchd.console import width_of, wrapped
from batchd.errors import cut
from batchd.log import escape
from batchd.records import Usage
from batchd.views import Kind, Passage
from batchd.words import counted, duration, money

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


#: Of a folded text, so many lines are shown at either end.
_HEAD, _TAIL = 4, 4
#: What took less is shown without a time (seconds).
_MIN_SHOWN_S = 0.05
#: Of a folded line, so many characters.
_MAX_FOLDED_CHARS = 400


class Tone(enum.StrEnum):
    """How a line looks: a style of rich's."""

    PLAIN = ""
    STRONG = "bold"
    QUIET = "dim"
    GOOD = "green"
    BAD = "red"
    NOTE = "yellow"


@dataclass(frozen=True, slots=True)
class ScreenLine:
    """One line, neutralised."""

    text: str
    tone: Tone = Tone.PLAIN
    #: Figures behind it, always quiet.
    tail: str = ""


#: Sign and tone of a passage's title.
_TITLES: Mapping[Kind, tuple[str, Tone]] = {
    Kind.SYSTEM: ("·", Tone.QUIET),
    Kind.PROMPT: ("▸", Tone.STRONG),
    Kind.THINKING: ("·", Tone.QUIET),
    Kind.ANSWER: ("▸", Tone.STRONG),
    Kind.TOOL: ("$", Tone.PLAIN),
    Kind.FAILURE: ("✗", Tone.BAD),
    Kind.NOTE: ("‖", Tone.NOTE),
}
#: What a passage without a title is called.
_NAMES = {Kind.PROMPT: "prompt", Kind.THINKING: "thinking"}
#: What is shown whole: the user's words, the model's, and verdicts.
_WHOLE = {Kind.PROMPT, Kind.ANSWER, Kind.VERDICT, Kind.FAILURE, Kind.NOTE, Kind.END}


def lines(passage: Passage, width: int = 0, *, full: bool = False) -> Iterator[ScreenLine]:
    """Yield the lines of a passage.

    ``width``: columns to wrap at, 0 for none.
    ``full``: nothing is folded, and the system prompt is shown.
    """
    if passage.kind in {Kind.VERDICT, Kind.END}:
        sign, tone = ("✓", Tone.GOOD) if passage.ok else ("✗", Tone.BAD)
    else:
        sign, tone = _TITLES[passage.kind]
        tone = Tone.BAD if passage.ok is False else tone
    head = f"{time.strftime('%H:%M:%S', time.localtime(passage.at))} {sign} "
    title = escape(passage.title) or _NAMES.get(passage.kind, "")
    figures = " · ".join(_figures(passage))
    yield from _fitted(head, ScreenLine(title, tone, f"  {figures}" if figures else ""), width)
    fold = not full and passage.kind not in _WHOLE
    for margin, line in (
        _body(passage.given, "    ", Tone.PLAIN, fold=fold) if passage.given else ()
    ):
        yield from _fitted(margin, line, width)
    if passage.text and (full or passage.kind is not Kind.SYSTEM):
        quiet = passage.kind in {Kind.SYSTEM, Kind.THINKING, Kind.TOOL}
        begun = "  │ " if passage.kind is Kind.TOOL else "  "
        for margin, line in _body(
            passage.text, begun, Tone.QUIET if quiet else Tone.PLAIN, fold=fold
        ):
            yield from _fitted(margin, line, width)


def _fitted(margin: str, line: ScreenLine, width: int) -> Iterator[ScreenLine]:
    """Yield a line behind its margin, in as many pieces as it takes."""
    room = max(1, width - width_of(margin))
    *most, last = wrapped(line.text, room) if width else [line.text]
    further = margin if margin.isspace() or "│" in margin else " " * len(margin)
    for piece in most:
        yield ScreenLine(margin + piece, line.tone)
        margin = further
    if width and line.tail and width_of(last + line.tail) > room:
        yield ScreenLine(margin + last, line.tone)
        for piece in wrapped(line.tail.lstrip(), room):
            yield ScreenLine(further, tail=piece)
    else:
        yield ScreenLine(margin + last, line.tone, line.tail)


def _figures(passage: Passage) -> Iterator[str]:
    """Yield what a passage took."""
    if passage.kind is Kind.END and passage.usage:
        yield counted(passage.usage.calls, "call")
    if passage.usage and passage.usage.total_tokens:
        yield tokens(passage.usage)
    if passage.seconds >= _MIN_SHOWN_S:
        yield duration(passage.seconds)
    if passage.kind is Kind.END:
        yield money(passage.cost_usd) if passage.cost_usd is not None else "cost unknown"


def tokens(usage: Usage) -> str:
    """Return what was read and written."""
    cached = f" ({usage.cached_input_tokens:,} cached)" if usage.cached_input_tokens else ""
    about = "about " if usage.estimated else ""
    return f"{about}{usage.input_tokens:,} in{cached}, {usage.output_tokens:,} out"


def _body(text: str, margin: str, tone: Tone, *, fold: bool) -> Iterator[tuple[str, ScreenLine]]:
    found = [*neutral(text)]
    left_out = len(found) - _HEAD - _TAIL
    shown = [
        (margin, ScreenLine(cut(line, _MAX_FOLDED_CHARS) if fold else line, tone)) for line in found
    ]
    if fold and left_out > 1:
        said = ScreenLine(f"… {counted(left_out, 'line')} folded …", Tone.NOTE)
        shown[_HEAD:-_TAIL] = [(margin, said)]
    yield from shown
