"""Overrides: values that stand in the place of the file's,
from variables of the environment and from ``tune``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli

from batchd.config.constraints import Place
from batchd.config.sections import ConfigSections
from batchd.errors import ConfigError, Problem

#: The variables that override keys: ``BATCHD_SECTION__KEY``.
PREFIX = "BATCHD_"


def place_of(key: str) -> tuple[str, ...]:
    """Return the place that ``SECTION.KEY`` means. Raises ``ConfigError``."""
    place: list[str] = []
    try:
        # A key is one line: more of them would be more of TOML.
        table: Any = tomli.loads(f"{key} = 0") if key.isprintable() else 0
        while isinstance(table, dict):
            ((name, table),) = table.items()
            place.append(name)
    except (ValueError, RecursionError):
        place = []
    if len(place) < 2:  # section and key
        hint = 'put a name with more than letters, digits, _ and - in quotes: models."openai/gpt-6.1-sol".…'
        raise ConfigError((Problem(ascii(key)[1:-1], "it is not SECTION.KEY", hint),))
    return tuple(place)


def dotted(place: Place) -> str:
    """Return a place as ``place_of`` reads it."""
    return ".".join(str(k) if re.fullmatch(r"[\w-]+", str(k)) else f'"{k}"' for k in place)


def override(
    raw: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[Place, str], list[Problem]]:
    """Put the environment's values into ``raw``; return which variable set which place."""
    variables: dict[Place, str] = {}
    problems: list[Problem] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        if not text.isprintable():
            # json.dumps would pass lone surrogates (bytes that are not UTF-8) on to pydantic.
            problems.append(Problem(name, "the value holds control characters or is not UTF-8"))
            continue
        place, hint = _resolve(raw, name.removeprefix(PREFIX).split("__"))
        put(raw, place, read(text, hint), name=name, names=variables, problems=problems)
    return variables, problems


def put(
    raw: dict[str, Any],
    place: tuple[str, ...],
    value: Any,
    *,
    name: str,
    names: dict[Place, str],
    problems: list[Problem],
) -> None:
    """Put a value into ``raw``; note in ``names`` that ``name`` brought it, or what is wrong."""
    table: Any = raw
    for end, key in enumerate(place[:-1], 1):
        if isinstance(table, dict) and key not in table:
            names[place[:end]] = name
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table[place[-1]] = value
        names[place] = name
    else:
        problems.append(Problem(name, "there is no such table"))


def _resolve(raw: Mapping[str, Any], words: list[str]) -> tuple[tuple[str, ...], Any]:
    """Return the place that the words of a variable mean, and the type of what stands there."""
    hint: Any = ConfigSections
    table: Any = raw
    place: list[str] = []
    for word in words:
        known = keys(hint) | (table.keys() if isinstance(table, dict) else set())
        # Variables cannot hold `/`, `-` or `.`:
        # PROVIDERS__MY_SERVER means my-server, if that is there.
        key = next((k for k in sorted(known) if _plain(k) == _plain(word)), word.lower())
        place.append(key)
        table = table.get(key) if isinstance(table, dict) else None
        hint = hint_of(hint, key)
    return tuple(place), hint


def _plain(key: str) -> str:
    return re.sub(r"\W", "_", key).lower()


def hint_of(hint: Any, key: str) -> Any:
    """Return the type of what stands under a key, by that of its table; None: it is not known."""
    if is_dataclass(hint):
        hint = get_type_hints(hint).get(key)
        return get_args(hint)[0] if get_origin(hint) is UnionType else hint
    return get_args(hint)[1] if get_origin(hint) is not None and len(get_args(hint)) > 1 else None


def keys(hint: Any) -> set[str]:
    """Return the keys that a table has by its type; none where they are the user's own."""
    return {f.metadata.get("alias", f.name) for f in fields(hint)} if is_dataclass(hint) else set()


def read(text: str, hint: Any) -> Any:
    """Return a variable's value: as it stands where text is wanted, else as TOML would read it."""
    if hint is str or get_origin(hint) is Literal:
        return text
    try:
        return tomli.loads(f"value = {text}")["value"]
    except (tomli.TOMLDecodeError, RecursionError):
        return text
