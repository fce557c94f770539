"""``batchd config``: the values in force, and where each comes from."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from batchd import config, control
from batchd.cli.display import formatting
from batchd.config import Config, loading, operator_files, trust
from batchd.config.providers import PRESETS
from batchd.config.reading import Place, keys, leaves
from batchd.config.sections import ConfigSections
from batchd.errors import NoAnswerError, NoDaemonError, UsageError, near
from batchd.log import escape
from batchd.masking import Masker

#: Where what a line says of its value begins, unless the value is longer.
_ASIDE = 42
#: What stands for a secret.
HIDDEN = "…"
#: Lines of one value, beyond which its lines are not looked for.
_MAX_VALUE_LINES = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "key",
        nargs="?",
        default="",
        metavar="KEY",
        help="one key, or a table: pool, pool.processes",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON, for programs")
    shown.add_argument(
        "--sample",
        action="store_true",
        help="print a sample file instead: every key with its default and its meaning",
    )
    parser.epilog = (
        "Each line is a SECTION.KEY, as `batchd tune` takes it, its value, and the line of the file, the variable, "
        "the preset or the default that it comes from. Secrets are never shown: … stands for them."
    )


def run(args: argparse.Namespace) -> int:
    """Show them all, or which there are."""
    if args.sample:
        sample = importlib.resources.files("batchd") / "data" / "config.toml"
        print(sample.read_text("utf-8"), end="")
        return 0
    settings = config.load(args.config)
    # The daemon's process, what is changed in it, and whether there is one that does not answer.
    pid: int | None = None
    tuned: dict[str, str] = {}
    silent, state = False, Path(settings.paths.state)
    try:
        tuned = dict(control.ask(state, control.Tune()).overrides)
        pid = control.ask(state, control.AskStatus()).pid
    except NoDaemonError as error:
        tuned, silent = {}, isinstance(error, NoAnswerError)
    found = [*values(settings, tuned)]
    if wanted := args.key.strip("[] "):
        known = {value.key for value in found}
        found = [v for v in found if v.key == wanted or v.key.startswith(f"{wanted}.")]
        if not found:
            tables = {key.rpartition(".")[0] for key in known}
            fix = near(wanted, known | tables, "`batchd config` shows all of them")
            raise UsageError(f"there is no key or table {wanted!a}: {fix}")
    if args.json:
        rows = [dataclasses.asdict(value) for value in found]
        formatting.print_json({"file": settings.file, "daemon": pid, "values": rows})
        return 0
    if settings.file:
        print(f"# {escape(settings.file)}")
    else:
        print("# No configuration is found: defaults, and a spool of your own,")
        print(
            f"# {escape(str(trust.own_spool(settings.environ)))}; `batchd init DIR` makes another."
        )
    if pid:
        print(
            f"# Daemon {pid} has the file as it was when it last read it, and an environment of its"
        )
        print("# own; what `batchd tune` has changed in it is marked as such.")
    elif silent:
        print("# The daemon does not answer: what `batchd tune` may have changed is not known.")
    for value in found:
        if value.value is not None:
            # What `tune` has changed is text as TOML has it already.
            shown = value.value if value.source is ValueSource.TUNE else _toml(value.value)
            where = f"line {value.line}" if value.source is ValueSource.FILE else value.variable
            print(escape(f"{f'{value.key} = {shown}':<{_ASIDE}}  # {where or value.source}"))
    return 0


def _toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


# Where each value is from. Secrets are never among them.


class ValueSource(enum.StrEnum):
    """The kind of place that a value comes from."""

    FILE = "file"
    VARIABLE = "variable"
    PRESET = "preset"
    DEFAULT = "default"
    #: Changed in the running daemon, until that ends.
    TUNE = "tune"


@dataclass(frozen=True, slots=True)
class ValueInForce:
    """A key, its value in force, and where that comes from."""

    #: ``SECTION.KEY``, as `batchd tune` has it.
    key: str
    value: Any
    source: ValueSource
    #: Where it stands in the file, and which variable brings it, if it does.
    line: int | None = None
    variable: str = ""


def values(config: Config, tuned: Mapping[str, str]) -> Iterator[ValueInForce]:
    """Yield all values, in the order of config.toml.

    ``tuned``: what is changed in a running daemon, without secrets.
    """
    lines: Mapping[Place, int] = {}
    raw: dict[str, Any] = {}
    if config.file:
        text = operator_files.content(config.file).decode("utf-8-sig")
        lines, raw = numbered(text), tomli.loads(text)
    variables = _variables(raw, config.environ)
    masker = Masker(config.hidden())
    left = {**tuned}
    for place, value, secret in leaves(config):
        if place[0] not in keys(ConfigSections):
            continue
        shown = HIDDEN if secret and value else masker.value(_plain(place, value))
        key = loading.dotted(place)
        if key in left:
            yield ValueInForce(key, left.pop(key), ValueSource.TUNE)
        else:
            yield _found(key, place, shown, lines, variables)
    # A table of its own, or a part of one that is shown as a whole.
    yield from (ValueInForce(key, text, ValueSource.TUNE) for key, text in left.items())


def numbered(text: str) -> dict[Place, int]:
    """Return the line of each key and table in a TOML text that is valid."""
    found: dict[Place, int] = {}
    head: Place = ()
    statement: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        statement.append(line)
        try:
            table = tomli.loads("\n".join(statement))
        except (tomli.TOMLDecodeError, RecursionError):
            if len(statement) > _MAX_VALUE_LINES:
                break
            continue  # a value of several lines
        first = number - len(statement) + 1
        if statement[0].lstrip().startswith("["):
            *_, head = _places(table, ())
            found.setdefault(head, first)
        else:
            for place in _places(table, head):
                found.setdefault(place, first)
        statement = []
    return found


def _places(table: Mapping[str, Any], head: Place) -> Iterator[Place]:
    """Yield all that a table holds, at whatever depth."""
    for key, value in table.items():
        yield (*head, key)
        if isinstance(value, dict):
            yield from _places(value, (*head, key))


def _variables(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[Place, str]:
    """Return what comes from variables, and from which; changes ``raw`` accordingly."""
    tables = loading.Tables(raw, Path(), environ)
    tables.override()
    # Of the places that a variable has set, all but the last are tables that it had to make.
    return {place: name for name, place in {v: k for k, v in tables.names.items()}.items()}


def _plain(place: Place, value: Any) -> Any:
    """Return a value as JSON has it, without what of it may be a key."""
    if place[-1] == "base_url":
        return value.partition("?")[0]
    if place[0] == "notify" and place[-1] == "command":
        return [*value[:1], *(HIDDEN for _ in value[1:])]
    if place == ("pool", "machines"):
        return [
            {"name": each.called, "command": each.shown, "processes": each.processes}
            for each in value
        ]
    if isinstance(value, tuple):
        return [*value]
    return dict(value) if isinstance(value, Mapping) else value


def _found(
    key: str, place: Place, value: Any, lines: Mapping[Place, int], variables: Mapping[Place, str]
) -> ValueInForce:
    """Return a value with the place that it comes from."""
    depth = len(place)
    # A variable may bring the table that it stands in, or a part of a table that is shown whole.
    related = (v for p, v in variables.items() if p[:depth] == place or place[: len(p)] == p)
    if by := variables.get(place) or next(related, ""):
        return ValueInForce(key, value, ValueSource.VARIABLE, variable=by)
    if place in lines:
        return ValueInForce(key, value, ValueSource.FILE, line=lines[place])
    match place:
        case ("providers", str(name), str(field)) if field in PRESETS.get(name, {}):
            return ValueInForce(key, value, ValueSource.PRESET)
    return ValueInForce(key, value, ValueSource.DEFAULT)
