"""The loader: finds config.toml, lays presets and variables over it, and has it read with all
problems at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tomli

from batchd.config import trust
from batchd.config.operator_files import named
from batchd.config.providers import PRESETS, api, model_problem, tier_problem
from batchd.config.reading import Place, Reader, Section, keys, plain, tables as as_tables
from batchd.config.sections import ConfigSections, PathsSection
from batchd.errors import ConfigError, Problem
from batchd.records import STANDARD, options

if TYPE_CHECKING:
    from batchd.config import Config

_Section = TypeVar("_Section", bound=Section)
#: The variables that override keys: ``BATCHD_SECTION__KEY``.
PREFIX = "BATCHD_"
_UNFIT = "the value holds control characters or is not UTF-8"
#: What the parser says of a table that is opened a second time.
_TWICE = re.compile(r"Cannot declare \((.*?)\) twice")
#: What earlier versions made in the working directory, where they had no configuration.
_FORMER = Path(".batchd", "batchd.db")


@dataclass(slots=True)
class Tables(Reader):
    """The tables of a configuration before they are read, and where what stands there is from."""

    #: The file; empty: there is none.
    file: str = ""
    #: As it was named, or found.
    source: str = ""

    def put(self, place: tuple[str, ...], text: str, hint: Any, name: str) -> None:
        """Put the value of a variable, or a change, into its place."""
        if not text.isprintable():
            # JSON has no lone surrogates: bytes that are not UTF-8.
            self.unread.append(Problem(name, _UNFIT))
            return
        table: Any = self.raw
        for end, key in enumerate(place[:-1], 1):
            if isinstance(table, dict) and key not in table:
                self.names[place[:end]] = name
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[place[-1]] = _value(text, hint)
            self.names[place] = name
        else:
            self.unread.append(Problem(name, "there is no such table"))

    def override(self) -> None:
        """Put the environment's values in."""
        for name, text in sorted(self.environ.items()):
            if name.startswith(PREFIX) and "__" in name:
                place, hint = self._meant(name.removeprefix(PREFIX).split("__"))
                self.put(place, text, hint, name)

    def _meant(self, words: list[str]) -> tuple[tuple[str, ...], Any]:
        """Return the place that the words of a variable mean, and the type of what stands there."""
        hint: Any = ConfigSections
        table: Any = self.raw
        place: list[str] = []
        for word in words:
            known = keys(hint).keys() | (table.keys() if isinstance(table, dict) else set())
            # Variables cannot hold `/`, `-` or `.`:
            # PROVIDERS__MY_SERVER means my-server, if that is there.
            key = next((k for k in sorted(known) if _bare(k) == _bare(word)), word.lower())
            place.append(key)
            table = table.get(key) if isinstance(table, dict) else None
            hint = _below(hint, key)
        return tuple(place), hint

    def paths(self) -> PathsSection:
        """Return ``[paths]`` alone. Raises ``ConfigError`` with all that is wrong there."""
        paths = self._read(PathsSection, "paths")
        self._insist([self.named(at, why) for at, why in paths.nested(f"{paths.state}-mirrors")])
        return paths

    def sections(self) -> ConfigSections:
        """Return the sections, their paths absolute. Raises ``ConfigError`` with all problems."""
        sections = self._read(ConfigSections)
        if not sections.workspace.mirrors:
            workspace = replace(sections.workspace, mirrors=f"{sections.paths.state}-mirrors")
            sections = replace(sections, workspace=workspace)
        wrong = [self.named(place, why) for place, why in contradictions(sections)]
        self._insist([*wrong, *self.wrong])
        return sections

    def _read(self, kind: type[_Section], *place: str) -> _Section:
        # As JSON: a date is text, as it is for a task file.
        self.raw = json.loads(json.dumps(self.raw, default=str))
        found = self.section(kind, self.raw.get(place[0], {}) if place else self.raw, place)
        self._insist(self.unread)
        assert found is not None, "it could be read"
        return found

    def _insist(self, wrong: list[Problem]) -> None:
        if wrong:
            raise ConfigError(tuple(wrong), self.source)


def _value(text: str, hint: Any) -> Any:
    """Return a value: as it stands where text is wanted, else as TOML would read it."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if kind is str or get_origin(kind) is Literal:
        return text
    try:
        return tomli.loads(f"value = {text}")["value"]
    except (tomli.TOMLDecodeError, RecursionError):
        return text


def _bare(key: str) -> str:
    return re.sub(r"\W", "_", key).lower()


def _below(hint: Any, key: str) -> Any:
    """Return the type of what stands under a key, by that of its table; None: it is not known."""
    hint = plain(hint)
    if name := keys(hint).get(key):
        return get_type_hints(hint, include_extras=True)[name]
    return (
        get_args(hint)[1] if len(get_args(hint)) > 1 and get_origin(hint) is not Literal else None
    )


def dotted(place: Place) -> str:
    """Return a place as ``place_of`` reads it."""
    return ".".join(str(k) if re.fullmatch(r"[\w-]+", str(k)) else f'"{k}"' for k in place)


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


def tables(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    section: str = "",
    draft: str = "",
    here: Path = Path(),
) -> Tables:
    """Return the tables of the file that counts, with presets and variables.

    ``section``: of this one alone, whatever is wrong with the others.
    ``draft``: what is to stand in ``path``. ``here``: what counts as the working directory.
    """
    found = trust.ConfigFile(path) if path else _searched(environ, here)
    raw = tomli.loads(draft) if draft else _read(found) if found else {}
    if section:
        raw = {key: table for key, table in raw.items() if key == section}
        mine = f"{PREFIX}{section}__".upper()
        environ = {
            name: text
            for name, text in environ.items()
            if not name.startswith(PREFIX) or name.upper().startswith(mine)
        }
    # Where a file is named, the working directory may be gone.
    file = _lasting(found.path) if found else None
    made = Tables(raw, file.parent if file else here.absolute(), environ)
    if found:
        made.file, made.source = str(file), str(found.path)
    providers = raw.setdefault("providers", {})
    for name, preset in PRESETS.items():
        # What is no table is reported as such.
        if isinstance(providers, dict) and isinstance(table := providers.get(name, {}), dict):
            providers[name] = {**preset, **table}
    made.override()
    if not found:
        _house(raw, environ, here)
    return made


def changed(config: Config, changes: Mapping[tuple[str, ...], str]) -> ConfigSections:
    """Return the sections of a configuration with some places changed, as strictly as a file is
    read. Raises ``ConfigError`` with all problems at once.
    """
    raw = {key: as_tables(getattr(config, key)) for key in keys(ConfigSections)}
    made = Tables(raw, Path(config.base), config.environ)
    for place, text in changes.items():
        hint: Any = ConfigSections
        for key in place:
            hint = _below(hint, key)
        made.put(place, text, hint, dotted(place))
    return made.sections()


def _lasting(file: Path) -> Path:
    """Return an absolute path that leads to a file whatever becomes of the working directory:
    ``..`` counts as it leads now.
    """
    whole = file.absolute()
    return whole.parent.resolve() / whole.name if ".." in whole.parts else whole


def _searched(environ: Mapping[str, str], here: Path) -> trust.ConfigFile | None:
    try:
        return trust.find(environ, here)
    except OSError as error:
        place = str(error.filename or "")
        raise ConfigError((Problem(place, f"it cannot be looked at: {error.strerror}"),)) from None


def _read(found: trust.ConfigFile) -> dict[str, Any]:
    try:
        return tomli.loads(found.content().decode("utf-8-sig"))
    except tomli.TOMLDecodeError as error:
        said = error.msg
        if twice := _TWICE.match(said):  # the keys as Python shows them
            keys = ".".join(re.findall(r"'([^']*)'", twice[1]))
            said = f"the table [{keys}] is given twice"
        if said == "Invalid value":
            rest = error.doc[error.pos :].partition("\n")[0].strip()
            said = f"TOML has no value {rest[:20]!r}" if rest else "a value is missing here"
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

    Raises ``ConfigError`` where there is no home for it; and for a working directory in which an
    earlier version has worked: that counts no longer by itself, and must not be forgotten in
    silence.
    """
    said = raw.setdefault("paths", {})
    if said.keys() >= keys(PathsSection).keys():
        return
    mine = PathsSection.own(environ)
    if mine is None:
        why = "there is no configuration, and this user has no home for a spool of their own"
        fix = "set HOME, or name a configuration with --config or BATCHD_CONFIG"
        raise ConfigError((Problem("[paths]", why, fix),))
    former = here / _FORMER
    elsewhere = former.resolve().parent != Path(mine.state).resolve()
    if "state" not in said and os.path.isfile(former) and elsewhere:
        place = here.absolute()
        why = "it is a spool without a config.toml: earlier versions used it by themselves, this one does not"
        fix = f"if it is yours, go on with it: {trust.spool_command(place)}; else work in another directory"
        raise ConfigError((Problem(str(place / _FORMER), why, fix),))
    raw["paths"] = {**asdict(mine), **said}


def contradictions(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Yield what no single section shows, each with its place."""
    models = {("agent", "model"): config.agent.model}
    if config.evaluation.judge_model:
        models["evaluation", "judge_model"] = config.evaluation.judge_model
    for place, model in models.items():
        if why := model_problem(model, config):
            yield place, why
    if config.ray.min_processes > config.pool.processes:
        said = f"it is more than [pool] processes, {config.pool.processes}"
        yield ("ray", "min_processes"), Problem("", said)
    yield from _homeless(config)
    yield from _unasked(config)
    yield from _handed_out(config)
    yield from config.paths.nested(config.workspace.mirrors)


def _homeless(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find tables of models without a provider: what they set would hold for no call.

    What costs are compared with needs none.
    """
    called = (config.agent.model, config.evaluation.judge_model)
    for name in config.models:
        provider, slash, own = name.partition("/")
        if (provider and own) or name in config.cost.compare:
            continue
        own = own if slash else name
        house = next((m for m in called if m.endswith(f"/{own}")), called[0]).partition("/")[0]
        fix = f'[models."{house}/{own or "MODEL"}"]; models to compare the cost with go into [cost] compare'
        why = "it is not provider/model, so it sets nothing for any model in use"
        yield ("models", name), Problem("", why, fix)


def _unasked(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find service tiers and options that the models they are set for cannot be asked for."""
    for name, model in config.models.items():
        if why := tier_problem(name, model.service_tier or STANDARD, config):
            yield ("models", name, "service_tier"), why
        if name.partition("/")[0] in config.providers:
            for option, why in options.untaken(model.options, name, api(name, config)):
                yield ("models", name, "options", option), why
    agent = config.agent
    own = config.models.get(agent.model)
    said = STANDARD if own and own.service_tier else agent.service_tier
    if why := tier_problem(agent.model, said, config):
        yield ("agent", "service_tier"), why


def _handed_out(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find secrets of batchd's own among what tasks may ask for."""
    variables = {name: place for place, name in named(config, "_env")}
    files = {os.path.realpath(file): place for place, file in named(config, "_file")}
    asked: list[tuple[Place, tuple[str, ...] | None]] = [
        (("secrets", "env"), variables.get(name)) for name in config.secrets.env
    ]
    for given, file in config.secrets.files.items():
        asked.append((("secrets", "files", given), files.get(os.path.realpath(file))))
    for place, ours in asked:
        if ours:
            what = f"a secret of [{'.'.join(ours[:-1])}]"
            yield place, Problem("", f"it holds {what}, which no command may see")
