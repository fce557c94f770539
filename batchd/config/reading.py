"""The reader of config.toml's values: each is read as the type of its field says, and all that is
wrong comes at once, in words.

A field of a section has its type, its default and its bounds, and by ``Annotated`` what its type
does not say: ``Holds`` what a text must be, ``Reads`` how it is read, ``Lies`` which path it is. It
needs no pydantic, so that commands that look at ``[paths]`` alone do not load it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, MinLen

from batchd.errors import Problem, near
from batchd.gone import GONE_KEYS, GONE_NOTIFY_WORDS

Place: TypeAlias = tuple[str | int, ...]
_Section = TypeVar("_Section", bound="Section")

#: Characters of a value that are shown.
_SHOWN = 64
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
#: Below keys like these no value is shown: it may be a secret.
_SECRETIVE = re.compile("env|header|key|pass|secret|token|url", re.IGNORECASE)
#: The models' tables, whose names hold dots and slashes.
_QUOTES = 'put a model\'s name in quotes, as in [models."openai/gpt-6.1-sol"]'
#: The sections whose tables have names of the user's, and what these are the names of.
_ENTRIES = {"providers": "provider", "notify": "receiver"}
#: What a value must be, by its type.
_MUST: Mapping[object, str] = {
    bool: "it must be a valid boolean",
    int: "it must be a valid integer",
    float: "it must be a valid number",
    str: "it must be a valid string",
}
#: Where these are wanted, a text that stands there is shown: it is no secret.
_NUMBERS = (bool, int, float)


class Section:
    """A table of config.toml: a frozen dataclass, of which each field is a key."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield what no single key of it shows, each with its place below it."""
        yield from ()


@dataclass(frozen=True, slots=True, eq=False)
class Holds:
    """What a text must be."""

    test: Callable[[str], object]
    #: ``{!r}`` stands for the text, where it may be shown.
    why: str
    fix: str = ""

    def problem(self, text: str) -> Problem | None:
        """Return what is wrong with a text, if anything."""
        if not text or self.test(text):  # where it may not be empty, another mark says it
            return None
        return Problem("", self.why.format(text), self.fix)


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """How a value is read, with one complaint for all that is wrong."""

    #: Raises ``ValueError``, with what is wrong.
    read: Callable[[object], object]
    #: Whether it is one of a few words, so that what stands there may always be shown.
    words: bool = False


class Lies(enum.Enum):
    """Which path a text is; an empty one is none."""

    #: A relative one lies beside the file.
    BESIDE = enum.auto()
    #: It holds a secret: a relative one is looked for among systemd's credentials first.
    CREDENTIAL = enum.auto()


Name: TypeAlias = Annotated[str, MinLen(1)]
FilePath: TypeAlias = Annotated[str, Lies.BESIDE]
KeyFile: TypeAlias = Annotated[str, Lies.CREDENTIAL]
Variable: TypeAlias = Annotated[
    str,
    # Not quoted: it may be the secret itself, put into the wrong place.
    Holds(
        re.compile(r"[A-Za-z_]\w*", re.ASCII).fullmatch,
        "it must be the name of an environment variable",
    ),
]


def keys(hint: Any) -> dict[str, str]:
    """Return the names of fields by the keys of a table, by its type; none where they are the
    user's own.

    A key that Python has for itself ends with ``_`` as a field.
    """
    return {f.name.rstrip("_"): f.name for f in fields(hint)} if is_dataclass(hint) else {}


def plain(hint: Any) -> Any:
    """Return a type without what is said of it, and without None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in {Union, UnionType} and NoneType in get_args(hint):
        return plain(get_args(hint)[0])
    return hint


def tables(value: object) -> object:
    """Return a section as what it can be read from."""
    if isinstance(value, Section):
        return {key: tables(getattr(value, name)) for key, name in keys(value).items()}
    if isinstance(value, Mapping):
        return {key: tables(below) for key, below in value.items()}
    return [*map(tables, value)] if isinstance(value, tuple) else value


def leaves(
    value: object, place: Place = (), *, secret: bool = False
) -> Iterator[tuple[Place, Any, bool]]:
    """Yield each key of a section with its value, and whether that is kept from sight."""
    if isinstance(value, Section):
        for f in fields(value):
            # What has no repr may hold keys.
            at = (*place, f.name.rstrip("_"))
            yield from leaves(getattr(value, f.name), at, secret=not f.repr)
    elif (
        isinstance(value, Mapping) and value and all(isinstance(v, Section) for v in value.values())
    ):
        for name, below in value.items():
            yield from leaves(below, (*place, name))
    else:
        yield place, value, secret


@dataclass(slots=True)
class Reader:
    """The reader of a configuration, with all that it finds wrong."""

    #: All tables.
    raw: dict[str, Any]
    #: The folder that relative paths mean.
    base: Path
    environ: Mapping[str, str]
    #: Which variable, or change, has set which place.
    names: dict[Place, str] = field(default_factory=dict)
    #: What cannot be read, and control characters:
    #: nothing can be asked about a path or an address that holds them.
    unread: list[Problem] = field(default_factory=list)
    #: What can be read, and is wrong all the same.
    wrong: list[Problem] = field(default_factory=list)

    def section(self, kind: type[_Section], raw: object, place: Place) -> _Section | None:
        """Return a table; None, and why in ``unread``, where it cannot be read."""
        if not isinstance(raw, Mapping):
            self.unread.append(self.named(place, Problem("", "it must be a table")))
            return None
        before, first = len(self.unread), len(self.wrong)
        hints, known, values = get_type_hints(kind, include_extras=True), keys(kind), {}
        for f in fields(kind):
            key = f.name.rstrip("_")
            at = (*place, key)
            given = raw.get(key, f.default)
            make = f.default_factory
            if given is MISSING and callable(make):
                # A table that is left out is read too: its paths lie beside the file.
                given = {} if isinstance(make, type) and issubclass(make, Section) else make()
            if given is MISSING:
                self.unread.append(self.named(at, self._needed(at)))
            else:
                values[f.name] = self.value(hints[f.name], given, at)
        for key in (key for key in raw if key not in known):
            at = (*place, key)
            self.unread.append(self.named(at, _unknown(at, raw[key], known)))
        if len(self.unread) > before:
            return None
        made = kind(**values)
        # What is wrong with the whole goes before what is wrong with its keys.
        self.wrong[first:first] = [
            self.named((*place, *at), why) for at, why in made.contradictions()
        ]
        return made

    def value(self, hint: Any, raw: object, place: Place) -> Any:
        """Return a value, as its type says; None, and why in ``unread``, where it is none."""
        hint, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        origin, inner = get_origin(hint), get_args(hint)
        own = next((mark for mark in marks if isinstance(mark, Reads)), None)
        try:
            if own:
                return own.read(raw)
            if origin in {Union, UnionType}:
                return None if raw is None else self.value(inner[0], raw, place)
            if isinstance(hint, type) and issubclass(hint, Section):
                return self.section(hint, raw, place)
            if origin is tuple:
                read: object = self._list(inner[0], raw, place)
            elif origin is not None and origin is not Literal:
                return self._table(inner[0], inner[1], raw, place)
            else:
                read = _single(hint, raw)
            for mark in marks:
                _insist_on_bound(mark, read)
        except ValueError as error:
            words = own.words if own else origin is Literal
            closed = words or bool(own) or hint in _NUMBERS
            problem = misread(place, str(error), raw, closed=closed, words=words)
            if place[:1] == ("notify",) and (instead := GONE_NOTIFY_WORDS.get(str(raw))):
                problem = Problem("", f"there is no {raw!r} any more", instead)
            self.unread.append(self.named(place, problem))
            return None
        return self._text(read, marks, place) if isinstance(read, str) else read

    def _list(self, hint: object, raw: object, place: Place) -> tuple[object, ...]:
        if not isinstance(raw, list | tuple):
            raise ValueError("it must be a valid array")
        return tuple(self.value(hint, each, (*place, n)) for n, each in enumerate(raw))

    def _table(self, key: object, hint: object, raw: object, place: Place) -> dict[str, object]:
        """Return a table whose keys are the user's."""
        if not isinstance(raw, Mapping):
            raise ValueError("it must be an object")
        found = {}
        for name, below in raw.items():
            at = (*place, name)
            if name.isprintable():
                self.value(key, name, at)
            else:
                why = f"the key {name!a} holds control characters"
                self.unread.append(self.named(place, Problem("", why)))
            found[name] = self.value(hint, below, at)
        return found

    def _text(self, text: str, marks: Sequence[object], place: Place) -> str:
        """Return a text, a path as an absolute one."""
        if not text.isprintable():
            self.unread.append(self.named(place, Problem("", "it holds control characters")))
            return text
        for mark in marks:
            if isinstance(mark, Holds) and (why := mark.problem(text)):
                self.wrong.append(self.named(place, why))
            if mark is Lies.CREDENTIAL and text:
                credentials = self.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")
                if (credential := Path(credentials, text)).is_file():
                    return str(credential)
            if isinstance(mark, Lies) and text:
                if text.startswith("~/"):
                    text = self.environ.get("HOME", "~") + text[1:]
                text = os.path.abspath(self.base / text)  # resolve would follow symlinks
        return text

    def named(self, place: Place, problem: Problem) -> Problem:
        """Return the problem under its place: the variable that brought it, or table and key."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.names:
                return replace(problem, place=self.names[place[:end]])
        return replace(problem, place=written(place))

    def _needed(self, place: Place) -> Problem:
        """Return that a key is needed; or, where a change of another one made its table, that there
        is no such provider or receiver.
        """
        if place[:-1] not in self.names or len(place) != 3 or place[0] not in _ENTRIES:
            return Problem("", "this key is needed")
        section, name, _ = map(str, place)
        known = [key for key in self.raw[section] if (section, key) not in self.names] or ["none"]
        return replace(unknown(name, known), message=f"there is no {_ENTRIES[section]} {name}")


def _single(kind: Any, raw: object) -> object:
    """Return a value that is neither list nor table. Raises ``ValueError``: what it must be."""
    if get_origin(kind) is Literal:
        if raw in get_args(kind):
            return raw
        # Empty is the same as not there: no one needs to write it.
        *words, last = map(repr, filter(None, get_args(kind)))
        raise ValueError(f"it must be {', '.join(words)} or {last}")
    if kind is Any:
        return raw
    if isinstance(raw, bool) != (kind is bool):
        raise ValueError(_MUST[kind])
    if kind is float and isinstance(raw, int | float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(raw):
                return float(raw)
        raise ValueError("it must be a finite number")
    if not isinstance(raw, kind):
        raise ValueError(_MUST[kind])
    return raw


def _insist_on_bound(mark: object, value: Any) -> None:
    """Raise ``ValueError`` where a value passes a bound."""
    match mark:
        case MinLen(least) if len(value) < least:
            if isinstance(value, str):
                raise ValueError(f"it must have at least {least} character{'s' * (least > 1)}")
            items = f"{least} item{'s' * (least > 1)}"
            raise ValueError(f"it must have at least {items} after validation, not {len(value)}")
        case Ge(least) if value < least:
            raise ValueError(f"it must be greater than or equal to {least}")
        case Gt(least) if value <= least:
            raise ValueError(f"it must be greater than {least}")
        case Le(most) if value > most:
            raise ValueError(f"it must be less than or equal to {most}")


def written(place: Place) -> str:
    """Return a place as config.toml writes it: ``[pool] processes``, ``[cost] compare[2]``."""
    if not place:
        return ""
    names = [k for k in place if isinstance(k, str)]
    index = "".join(f"[{k}]" for k in place if isinstance(k, int))
    table = ".".join(k if re.fullmatch(r"[\w-]+", k) else f'"{k}"' for k in names[:-1] or names)
    return f"[{table}]" + (f" {names[-1]}{index}" if len(names) > 1 else index)


# The words, also for task files


def _unknown(place: Place, raw: object, known: Collection[str]) -> Problem:
    """Return that config.toml has no such key, with what is meant, or was once."""
    if place[0] == "models" and isinstance(raw, Mapping):
        return Problem("", "there is no such key", _QUOTES)
    at = [place[0], "*", *place[2:]] if place[0] == "notify" else place
    if instead := GONE_KEYS.get(".".join(map(str, at))):
        return Problem("", "there is no such key any more", instead)
    return unknown(str(place[-1]), known)


def unknown(key: str, known: Collection[str]) -> Problem:
    """Return that there is no such key; ``known`` are those beside it. Without a place."""
    meant = _MEANT.get(key.lower(), "")
    fix = near(meant if meant in known else key.lower(), known)
    fix = fix or f"the known ones are {', '.join(sorted(known))}"
    return Problem("", "there is no such key", fix)


def misread(
    place: Place, said: str, value: object, *, closed: bool = False, words: bool = False
) -> Problem:
    """Return what a value must be, with what stands there as far as it may be shown.

    ``closed``: a text is shown too: it is to be a number, say, and no secret; ``words``: wherever
    it stands, for it is to be one of a few. Without a place.
    """
    secretive = any(_SECRETIVE.search(str(part)) for part in place)
    shown = [] if secretive and not words else [*_given(value, said, closed=closed)]
    return Problem("", said, "; ".join(shown))


def _given(value: object, said: str, *, closed: bool) -> Iterator[str]:
    """Yield what stands there, and what may be meant by it."""
    if isinstance(value, str):
        if not closed or repr(value) in said:
            return  # it is shown already, or may be anything
        short = value if len(value) <= _SHOWN else f"{value[: _SHOWN - 1]}…"
        yield f"it is {short!r}"
        meant = re.findall(r"'(\w+)'", said)
        if fix := near(value.lower(), meant):
            yield fix
    elif value is None or isinstance(value, bool | int | float):
        yield f"it is {json.dumps(value)[:_SHOWN]}"
    elif isinstance(value, list) and said.startswith("it must"):
        yield "it is a list"
    elif isinstance(value, dict):
        yield "it is an object"
