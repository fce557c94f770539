"""The options of a model call: what a task, a batch or a model's table may ask for, and which field
of a request each dialect has for it.

Another option is a row here, and a word in docs/tasks.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from batchd.errors import Problem, near
from batchd.records.models import APIS, Api

Options: TypeAlias = Mapping[str, object]
#: Of a value that is wrong so many characters are shown.
_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option: its values, and where it goes."""

    #: The words that it may be; or else it is a number within these bounds.
    words: Collection[str] = ()
    least: float = 0.0
    most: float = 0.0
    whole: bool = False
    #: The field of a request's body, by dialect: ``OUTER.INNER`` lies in another one.
    fields: Mapping[Api, str]

    @property
    def must(self) -> str:
        """What a value must be."""
        if self.words:
            *words, last = map(repr, self.words)
            return f"it must be {', '.join(words)} or {last}"
        kind = "a whole number" if self.whole else "a number"
        return f"it must be {kind} from {self.least:.0f} to {self.most:.0f}"

    def takes(self, value: object) -> bool:
        """Whether it may have a value."""
        if self.words:
            return value in self.words
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (isinstance(value, int) or not self.whole) and self.least <= value <= self.most


OPTIONS: Mapping[str, Option] = {
    "temperature": Option(most=2, fields=dict.fromkeys(APIS, "temperature")),
    "top_p": Option(most=1, fields=dict.fromkeys(APIS, "top_p")),
    "seed": Option(least=-(2**53), most=2**53, whole=True, fields={"chat": "seed"}),
    "verbosity": Option(
        words=("low", "medium", "high"),
        fields={"chat": "verbosity", "responses": "text.verbosity"},
    ),
}


def fields(api: Api) -> dict[str, str]:
    """Return the fields that a dialect has for options, by their names."""
    return {name: option.fields[api] for name, option in OPTIONS.items() if api in option.fields}


def problems(options: Options) -> Iterator[tuple[str, Problem]]:
    """Yield what is no option, or none of its values, each with its name."""
    for name, value in options.items():
        if name not in OPTIONS:
            fix = near(name.lower(), OPTIONS) or f"the known ones are {', '.join(OPTIONS)}"
            yield name, Problem("", "there is no such option", fix)
        elif not OPTIONS[name].takes(value):
            yield name, Problem("", OPTIONS[name].must, f"it is {json.dumps(value)[:_SHOWN]}")


def untaken(options: Options, model: str, api: Api) -> Iterator[tuple[str, Problem]]:
    """Yield the options that a model's dialect does not take, each with its name."""
    for name in options.keys() & OPTIONS.keys() - fields(api).keys():
        value = json.dumps(options[name])[:_SHOWN]
        why = f'it is {value}, and {model} is called with api = "{api}", which has no such option'
        yield name, Problem("", why, f"leave it out; it has {', '.join(fields(api))}")


def lay(body: dict[str, Any], options: Options, api: Api) -> None:
    """Lay options over a request's body; what its dialect does not take is left out: a task may
    go on with another model.
    """
    known = fields(api)
    for name in options.keys() & known.keys():
        outer, _, inner = known[name].partition(".")
        value = options[name]
        body[outer] = {**body.get(outer, {}), inner: value} if inner else value
