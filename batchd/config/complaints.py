"""Complaints of pydantic about a configuration or a task file, in our words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from pydantic_core import ErrorDetails

from batchd import gone
from batchd.errors import Problem

#: What is longer is no misspelt word, and takes long to compare.
_WORD = 64
#: Names that others have for a key of ours, and that look like none of them, or like another.
_MEANT = {
    "max_seconds": "timeout_s",
    "timeout": "timeout_s",
    "max_time": "timeout_s",
    "max_rounds": "max_iterations",
    "max_steps": "max_calls",
    "max_usd": "max_cost_usd",
    "max_cost": "max_cost_usd",
    "budget": "budget_usd",
    "prompt": "first_prompt",
    "depends_on": "after",
    "cwd": "dir",
    "directory": "dir",
    "command": "check",
    "test": "check",
}
#: What pydantic says of a key that is not there.
MISSING = frozenset({"missing", "missing_argument"})
#: Of these the value is always shown: it is to be one of a few words.
_WORDS = frozenset({"literal_error", "fallback"})
#: Of these a text is shown too: it is to be a number, say, and no secret.
_CLOSED = frozenset(
    {
        *(*_WORDS, "hosts", "bool_type", "bool_parsing"),
        *("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing"),
    }
)
#: Below keys like these no value is shown: it may be a secret.
_SECRETIVE = re.compile("env|header|key|pass|secret|token|url", re.IGNORECASE)
#: The models' tables, whose names hold dots and slashes.
_QUOTES = 'put a model\'s name in quotes, as in [models."openai/gpt-6.1-sol"]'


def complaint(error: ErrorDetails, known: Collection[str]) -> Problem:
    """Return a finding; ``known`` are the keys beside it. Without a place."""
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        at = error["loc"]
        if at[:1] == ("models",) and isinstance(error["input"], dict):
            return Problem("", "there is no such key", _QUOTES)
        place = [at[0], "*", *at[2:]] if at[0] == "notify" else at
        if instead := gone.KEYS.get(".".join(map(str, place))):
            return Problem("", "there is no such key any more", instead)
        key = str(at[-1])
        meant = _MEANT.get(key.lower(), "")
        near = [meant] if meant in known else []
        if not near and len(key) <= _WORD:
            near = difflib.get_close_matches(key.lower(), known, n=1)
        fix = (
            f"do you mean {near[0]}?" if near else f"the known ones are {', '.join(sorted(known))}"
        )
        return Problem("", "there is no such key", fix)
    if error["loc"][:1] == ("notify",) and (instead := gone.NOTIFY_WORDS.get(str(error["input"]))):
        return Problem("", f"there is no {error['input']!r} any more", instead)
    if error["type"] in MISSING:
        return Problem("", "this key is needed")
    if error["type"] == "dataclass_type":
        return Problem("", "it must be a table")
    if error["type"] == "model_type":
        return Problem("", "it must be an object")
    # Empty is the same as not there: no one needs to write it.
    said = re.sub(r"^[A-Z]\w* should", "it must", error["msg"]).replace("be '', ", "be ")
    closed = error["type"] in _CLOSED
    secretive = any(_SECRETIVE.search(str(part)) for part in error["loc"])
    hidden = secretive and error["type"] not in _WORDS
    shown = [] if hidden else [*_given(error["input"], said, closed=closed)]
    return Problem("", said, "; ".join(shown))


def _given(value: Any, said: str, *, closed: bool) -> Iterator[str]:
    """Yield what stands there, and what may be meant by it; ``closed``: a text, too."""
    if isinstance(value, str):
        if not closed or repr(value) in said:
            return  # it is shown already, or may be anything
        short = value if len(value) <= _WORD else f"{value[: _WORD - 1]}…"
        yield f"it is {short!r}"
        if near := difflib.get_close_matches(
            value[:_WORD].lower(), re.findall(r"'(\w+)'", said), n=1
        ):
            yield f"do you mean {near[0]}?"
    elif value is None or isinstance(value, bool | int | float):
        yield f"it is {json.dumps(value)[:_WORD]}"
    elif isinstance(value, list) and said.startswith("it must"):
        yield "it is a list"
    elif isinstance(value, dict):
        yield "it is an object"
