"""The loader: reads config.toml and the environment,
and validates them with all problems at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import tomli
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from batchd import imports
from batchd.config import overrides, own, trust
from batchd.config.complaints import MISSING, complaint
from batchd.config.constraints import Place, absolute, contradictions, controls, no_entry
from batchd.config.providers import PRESETS
from batchd.config.sections import ConfigSections, PathsSection
from batchd.errors import ConfigError, Problem

#: What the parser says of a table that is opened a second time.
_TWICE = re.compile(r"Cannot declare \((.*?)\) twice")
_KEYS_OF_PATHS = {f.name for f in fields(PathsSection)}


def load(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    section: str = "",
    draft: str = "",
    here: Path = Path(),
) -> tuple[ConfigSections, str, str]:
    """Return the sections, their paths absolute; the file that they came from, if any;
    and the folder that relative paths mean.

    ``section``: heed this one alone, whatever is wrong with the others.
    ``draft``: what is to stand in ``path``. ``here``: what counts as the working directory.
    """
    found = trust.ConfigFile(path) if path else _searched(environ, here)
    file = _lasting(found.path) if found else None
    raw = tomli.loads(draft) if draft else _read(found) if found else {}
    if section:
        raw = {key: table for key, table in raw.items() if key == section}
        mine = f"{overrides.PREFIX}{section}__".upper()
        environ = {
            name: text
            for name, text in environ.items()
            if not name.startswith(overrides.PREFIX) or name.upper().startswith(mine)
        }
    for name, preset in PRESETS.items():
        _merge_preset(raw, name, preset)
    variables, problems = overrides.override(raw, environ)
    if not found:
        _house(raw, environ, here)
    base = file.parent if file else here.absolute()
    source = str(found.path) if found else ""
    sections = _validated(raw, variables, problems, source=source, base=base, environ=environ)
    return sections, str(file or ""), str(base)


def _lasting(file: Path) -> Path:
    """Return an absolute path that leads to a file whatever becomes of the working directory:
    ``..`` counts as it leads now.
    """
    whole = file.absolute()
    return whole.parent.resolve() / whole.name if ".." in whole.parts else whole


def changed(
    sections: ConfigSections,
    changes: Mapping[tuple[str, ...], str],
    base: Path,
    environ: Mapping[str, str],
) -> ConfigSections:
    """Return ``sections`` with some places changed, as strictly as ``load`` reads them.

    ``base``: the folder that relative paths mean. Raises ``ConfigError`` with all problems at once.
    """
    parts = {f.name: getattr(sections, f.name) for f in fields(ConfigSections)}
    raw = _adapter().dump_python(ConfigSections(**parts), mode="json")
    names: dict[Place, str] = {}
    problems: list[Problem] = []
    for place, text in changes.items():
        hint: Any = ConfigSections
        for key in place:
            hint = overrides.hint_of(hint, key)
        name = overrides.dotted(place)
        if text.isprintable():
            overrides.put(
                raw, place, overrides.read(text, hint), name=name, names=names, problems=problems
            )
        else:
            problems.append(Problem(name, "the value holds control characters or is not UTF-8"))
    return _validated(raw, names, problems, base=base, environ=environ)


def _validated(
    raw: dict[str, Any],
    variables: Mapping[Place, str],
    problems: list[Problem],
    *,
    source: str = "",
    base: Path,
    environ: Mapping[str, str],
) -> ConfigSections:
    """Return the sections, their paths absolute, or raise all that is wrong with them."""
    try:
        # As JSON: there, strictness refuses "4" for a number, but not a list for a tuple.
        sections = _adapter().validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems += [_problem(e, variables, raw) for e in error.errors(include_url=False)]
        raise ConfigError(tuple(problems), source) from None
    problems += [_named(p, place, variables) for place, p in controls(raw, ())]
    if problems:
        raise ConfigError(tuple(problems), source)
    sections = absolute(sections, base, environ)
    problems = [_named(p, place, variables) for place, p in contradictions(sections)]
    if problems:
        raise ConfigError(tuple(problems), source)
    return sections


@cache
def _adapter() -> TypeAdapter[ConfigSections]:
    with imports.undisturbed():
        return TypeAdapter(ConfigSections)


def _searched(environ: Mapping[str, str], here: Path) -> trust.ConfigFile | None:
    try:
        return trust.find(environ, here)
    except OSError as error:
        place = str(error.filename or "")
        raise ConfigError((Problem(place, f"it cannot be looked at: {error.strerror}"),)) from None


def _dotted(keys: str) -> str:
    """Return a table's name as TOML has it, from the keys as Python shows them."""
    return ".".join(re.findall(r"'([^']*)'", keys))


def _read(found: trust.ConfigFile) -> dict[str, Any]:
    try:
        return tomli.loads(found.content().decode("utf-8-sig"))
    except tomli.TOMLDecodeError as error:
        said = _TWICE.sub(
            lambda table: f"the table [{_dotted(table[1])}] is given twice", error.msg
        )
        problem = Problem(f"line {error.lineno}, column {error.colno}", said)
    except UnicodeDecodeError as error:
        problem = Problem(f"byte {error.start}", "the file is not UTF-8")
    except RecursionError:
        problem = Problem("", "it is nested too deep")
    except OSError as error:
        problem = Problem("", f"the file cannot be read: {error.strerror}")
    raise ConfigError((problem,), str(found.path))


def _house(raw: dict[str, Any], environ: Mapping[str, str], here: Path) -> None:
    """Put the user's own spool where neither a file nor a variable says where things lie.

    Raises ``ConfigError``.
    """
    paths = raw.setdefault("paths", {})
    if paths.keys() >= _KEYS_OF_PATHS:
        return
    mine = own.insist(environ)
    if "state" not in paths and (problem := own.former(mine.state, here)):
        raise ConfigError((problem,))
    raw["paths"] = {**asdict(mine), **paths}


def _merge_preset(raw: dict[str, Any], name: str, preset: Mapping[str, Any]) -> None:
    providers = raw.setdefault("providers", {})
    if not isinstance(providers, dict):
        return  # reported as a wrong type
    table = providers.get(name, {})
    if isinstance(table, dict):
        providers[name] = {**preset, **table}


def _problem(
    error: ErrorDetails, variables: Mapping[Place, str], raw: Mapping[str, Any]
) -> Problem:
    place: Place = error["loc"]
    if place[-1:] == ("[key]",):  # pydantic adds this where the fault is a table's name
        place = place[:-1]
    hint: Any = ConfigSections
    for key in place[:-1]:
        hint = overrides.hint_of(hint, str(key))
    problem = complaint(error, overrides.keys(hint))
    if (
        error["type"] in MISSING and place[:-1] in variables and len(place) == 3
    ):  # section, name, key
        section, name, key = map(str, place)
        known = [k for k in raw[section] if (section, k) not in variables]
        problem = no_entry(section, name, known, key) or problem
    return _named(problem, place, variables)


def _named(problem: Problem, place: Place, variables: Mapping[Place, str]) -> Problem:
    """Return the problem under its place: the variable that brought it, or table and key."""
    for end in range(len(place), 0, -1):
        if place[:end] in variables:
            return replace(problem, place=variables[place[:end]])
    return replace(problem, place=written(place))


def written(place: Place) -> str:
    """Return a place as config.toml writes it: ``[pool] processes``, ``[cost] compare[2]``."""
    if not place:
        return ""
    names = [k for k in place if isinstance(k, str)]
    index = "".join(f"[{k}]" for k in place if isinstance(k, int))
    table = ".".join(k if re.fullmatch(r"[\w-]+", k) else f'"{k}"' for k in names[:-1] or names)
    return f"[{table}]" + (f" {names[-1]}{index}" if len(names) > 1 else index)
