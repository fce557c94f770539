"""Log lines as people read them on a terminal: when, whose, what, and what matters of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from batchd.fitting import clipped, hanging, name_in

#: What stands elsewhere in the line, or is for programs alone.
_LEFT_OUT = frozenset({"timestamp", "level", "event", "batch", "task", "worker", "exception"})
#: Fields that say enough without their names.
_BARE = frozenset({"message", "feedback", "purpose", "status", "reason", "model", "by"})
#: Shorter names of those that OpenTelemetry gives.
_NAMES: Mapping[str, str] = {
    "gen_ai.request.model": "model",
    "gen_ai.usage.input_tokens": "in",
    "gen_ai.usage.cache_read.input_tokens": "cached",
    "gen_ai.usage.output_tokens": "out",
    "gen_ai.response.finish_reasons": "ended",
}
#: The escape sequences of the levels that stand out.
_COLOURS = {"warning": "33", "error": "31", "critical": "31"}
#: The part of a line that the name of a batch, or of a task, may take.
_NAMES_PART = 3
#: Levels at which a line may be cut at the terminal's edge.
_BRIEF = frozenset({"debug", "info"})


def text(line: Mapping[str, Any], width: int) -> str:
    """Return a log line, with its end; ``width``: the columns there are for it, 0 for any number.

    What is only news takes one line of a terminal;
    a warning takes as many as it needs, and so does what has a message.
    """
    at = time.strftime("%H:%M:%S")
    level = "" if line["level"] in _BRIEF else f"{line['level']}: "
    whose = "/".join(str(line[key]) for key in ("batch", "task") if line.get(key))
    brief = bool(width) and line["level"] in _BRIEF and "message" not in line
    if brief:
        whose = name_in(whose, width // _NAMES_PART)  # what happened is to have room, too
    what = f"{whose} " * bool(whose) + level + str(line["event"]).replace("_", " ")
    said = ", ".join(_fields(line))
    whole = f"{at} {what}{': ' * bool(said)}{said}"
    pieces = [clipped(whole, width)] if brief else [*hanging(whole, width)] if width else [whole]
    return "\n".join([*pieces, *str(line.get("exception", "")).splitlines()]) + "\n"


def coloured(text: str, level: str) -> str:
    """Return a line, with its end, in the colour of its level,
    unless somebody wants none: no-color.org.
    """
    colour = "" if os.environ.get("NO_COLOR") else _COLOURS.get(level, "")
    return f"\x1b[{colour}m{text[:-1]}\x1b[0m\n" if colour else text


def _fields(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a line's fields say; nothing of those that are empty."""
    for key, value in line.items():
        if key in _LEFT_OUT or value in ("", None, [], {}):
            continue
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            # A model names its tools: what is in a list has not been neutralised yet.
            shown = " ".join(word if word.isprintable() else json.dumps(word) for word in value)
        elif isinstance(value, str):
            shown = value
        else:
            shown = json.dumps(value, default=str, skipkeys=True)
        name = _NAMES.get(key, key)
        yield shown if name in _BARE else f"{name} {shown}"
