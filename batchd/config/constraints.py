"""Constraints that the types of config.toml's values do not show:
control characters, paths, contradictions.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from batchd import masking, silent_paths
from batchd.config import receivers, telemetry, web_page
from batchd.config.operator_files import named
from batchd.config.providers import tier_problem
from batchd.config.sections import ConfigSections, PathsSection, PoolSection, SandboxSection
from batchd.errors import Problem
from batchd.records import SHOWABLE, STANDARD

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Place = tuple[str | int, ...]
_Table = TypeVar("_Table", bound="DataclassInstance")

#: No provider has a longer one; it stands in every line about a call, and in the ledger.
_MODEL_NAME = 512
#: The sections whose tables have names of the user's, and what these are the names of.
_ENTRIES = {"providers": "provider", "notify": "receiver"}
#: What commands have of batchd's own making, or by their network:
#: what stands there would not be the machine's.
_MADE = tuple(
    f"/etc/{name}"
    for name in ("passwd", "group", "nsswitch.conf", "gitconfig", "hosts", "resolv.conf")
)
_AS_IN = 'as in "/opt/tools"'
#: No user of https, no port that is none, nothing that a server could take for another path:
#: ``..``, escapes, a query.
_URL = re.compile(
    r"(https://|ssh://([A-Za-z0-9._-]+@)?)[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~+-]+)+/?"
)
_FORM = "it is written https://HOST/PATH or ssh://USER@HOST/PATH"
_ANY = "*"
_MACHINE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


def controls(value: Any, place: Place) -> Iterator[tuple[Place, Problem]]:
    """Find what no path, header, name or address may hold; ``extra_body`` alone is free text."""
    if isinstance(value, str) and not value.isprintable():
        yield place, Problem("", "it holds control characters")
    elif isinstance(value, dict):
        for key, below in value.items():
            if not key.isprintable():
                yield place, Problem("", f"the key {key!a} holds control characters")
            elif key != "extra_body":
                yield from controls(below, (*place, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from controls(below, (*place, index))


def absolute(sections: ConfigSections, base: Path, environ: Mapping[str, str]) -> ConfigSections:
    """Return the sections with every path absolute; relative ones lie beside the file."""

    def place(path: str) -> str:
        if path.startswith("~/"):
            path = environ.get("HOME", "~") + path[1:]
        return os.path.abspath(base / path)  # resolve would follow symlinks

    def key_file(path: str) -> str:
        credential = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), path)
        return str(credential) if credential.is_file() else place(path)

    def resolved(table: _Table) -> _Table:
        """Return a table with the files that hold secrets in their places."""
        changes: dict[str, Any] = {}
        for f in fields(table):
            value = getattr(table, f.name)
            if is_dataclass(value) and not isinstance(value, type):
                changes[f.name] = resolved(value)
            elif isinstance(value, Mapping) and value and all(map(is_dataclass, value.values())):
                changes[f.name] = {name: resolved(below) for name, below in value.items()}
            elif value and (f.name.endswith("_file") or f.name == "credentials"):
                changes[f.name] = key_file(value)
        return replace(table, **changes)

    done = resolved(sections)
    p, w, log = done.paths, done.workspace, done.log
    state = place(p.state)
    return replace(
        done,
        paths=PathsSection(inbox=place(p.inbox), outbox=place(p.outbox), state=state),
        workspace=replace(
            w,
            root=place(w.root),
            allow=tuple(place(a) for a in w.allow),
            mirrors=place(w.mirrors) if w.mirrors else f"{state}-mirrors",
        ),
        log=replace(log, file=log.file and place(log.file)),
        secrets=replace(
            done.secrets, files={n: key_file(f) for n, f in done.secrets.files.items()}
        ),
    )


def contradictions(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """What no single value shows: models without a provider, folders within one another."""
    for section, key in (("agent", "model"), ("evaluation", "judge_model")):
        model = getattr(getattr(config, section), key)
        if (model or key == "model") and (why := model_problem(model, config)):
            yield (section, key), why
    yield from _workers(config)
    yield from _homeless(config)
    yield from _tierless(config)
    for name, known in config.models.items():
        try:
            _ = known.hours and known.hours.at(())
        except ValueError as why:
            yield ("models", name, "hours"), Problem("", str(why))
    for name, provider in config.providers.items():
        if not reachable(provider.base_url):
            # A user and password in it would end up in logs; keys have their own fields.
            yield (
                ("providers", name, "base_url"),
                Problem("", "it must be http(s)://HOST[:PORT]/PATH, as in http://10.0.0.7:8000/v1"),
            )
    yield from telemetry.problems(config.metrics, config.traces)
    for name, receiver in config.notify.items():
        for key, problem in receivers.problems(name, receiver):
            yield ("notify", name, *filter(None, (key,))), problem
    for place, name in named(config, "_env"):
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            # Not quoted: it may be the secret itself, put into the wrong place.
            yield place, Problem("", "it must be the name of an environment variable")
    yield from web_page.problems(config.web)
    yield from _handed_out(config)
    yield from _shown(config.sandbox)
    yield from _folders(config)


def _folders(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find folders within one another, and URLs of repositories that are none."""
    keys = ("inbox", "outbox", "state")
    paths = [*(getattr(config.paths, key) for key in keys), config.workspace.mirrors]
    hanging = silent_paths.among(paths)
    # Without an answer no link is followed.
    ours = [os.path.abspath(p) if p in hanging else os.path.realpath(p) for p in paths]
    folders = dict(zip(keys, ours, strict=False))
    for key, folder in folders.items():
        for other, outer in folders.items():
            if (
                key != other
                and Path(folder).is_relative_to(outer)
                and (key > other or folder != outer)
            ):
                yield ("paths", key), Problem("", f"it must not be in or equal {other}, {outer}")
    mirrors = Path(ours[-1])
    for other, outer in folders.items():
        if mirrors.is_relative_to(outer) or Path(outer).is_relative_to(mirrors):
            why = f"it must not be in, hold or equal {other}, {outer}"
            yield ("workspace", "mirrors"), Problem("", why)
    for index, pattern in enumerate(config.workspace.repos):
        if wrong := _pattern_problem(pattern):
            yield ("workspace", "repos", index), wrong


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


def _tierless(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find service tiers that the models they are set for cannot be asked for."""
    for name, model in config.models.items():
        if why := tier_problem(name, model.service_tier or STANDARD, config):
            yield ("models", name, "service_tier"), why
    agent = config.agent
    own = config.models.get(agent.model)
    said = STANDARD if own and own.service_tier else agent.service_tier
    if why := tier_problem(agent.model, said, config):
        yield ("agent", "service_tier"), why


def reachable(url: str) -> bool:
    """Whether a provider can be reached by an address."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port
        return False
    return named and bool(re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url))


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


def no_entry(section: str, name: str, known: Sequence[str], needed: str) -> Problem | None:
    """Return that there is no such provider or receiver,
    where a change of one key means a table without ``needed``.
    """
    if section not in _ENTRIES:
        return None
    near = difflib.get_close_matches(name, known, n=1)
    what = [f"do you mean {near[0]}?"] if near else []
    what += [f"the known ones are {', '.join(sorted(known))}" if known else "there are none"]
    what += [f"a new one needs {needed}"]
    return Problem("", f"there is no {_ENTRIES[section]} {name}", "; ".join(what))


def model_problem(model: str, config: ConfigSections) -> Problem | None:
    """Return what is wrong with a ``provider/model``, if anything; the place is the caller's."""
    provider, _, name = model.partition("/")
    if not (provider and name and model.isprintable()):
        near = difflib.get_close_matches(provider, config.providers, n=1) or ["openai"]
        return Problem("", f"{model!r} is not provider/model", f"as in {near[0]}/MODEL")
    if len(model) > _MODEL_NAME:
        return Problem("", f"a model's name has at most {_MODEL_NAME} characters")
    if provider not in config.providers:
        near = difflib.get_close_matches(provider, config.providers, n=1)
        known = f"the known ones are {', '.join(sorted(config.providers))}"
        return Problem(
            "",
            f"no provider {provider!r} is configured",
            f"do you mean {near[0]}? {known}" if near else known,
        )
    return None


def _workers(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find machines that are none, and a pool in which nothing could run."""
    pool = config.pool
    if pool.engine == "ray" and not pool.processes:
        yield (
            ("pool", "processes"),
            Problem("", "the Ray cluster has room for no worker", "set it to 1 or more"),
        )
    if config.ray.min_processes > pool.processes:
        why = f"it is more than [pool] processes, {pool.processes}"
        yield ("ray", "min_processes"), Problem("", why)
    yield from _machines(pool)
    if not pool.processes and not pool.machines:
        why = "without processes, and without [pool] machines, no task could run"
        yield ("pool", "processes"), Problem("", why, "set one of them")


def _machines(pool: PoolSection) -> Iterator[tuple[Place, Problem]]:
    """Find machines without a name of their own, and keys in their commands."""
    seen: set[str] = set()
    for index, machine in enumerate(pool.machines):
        place = ("pool", "machines", index)
        if not _MACHINE.fullmatch(machine.called):
            why = f"{machine.called!a} is no name for it" if machine.called else "it has no name"
            if not machine.called and PurePath(machine.command[0]).name == "ssh":
                why = "options stand before its host, so it has no name"
            fix = "give it one of letters, digits, '.', '_' and '-', as in name = \"node7\""
            yield (*place, "name"), Problem("", why, fix)
        elif machine.called in seen:
            yield (
                (*place, "name"),
                Problem(
                    "",
                    f"another machine is called {machine.called}",
                    "raise its processes, or name it",
                ),
            )
        seen.add(machine.called)
        for word in machine.command:
            named = filter(masking.names_secret, re.findall(r"([A-Z][A-Z0-9_]*)=", word))
            # Not ssh's `-o NAME=VALUE`, whose names are ssh's own.
            for name in named:
                why = f"it gives {name} a value, which every process of this machine can read"
                fix = "have it set there, or put the key into a file that both machines have"
                yield (*place, "command"), Problem("", why, fix)


def _shown(sandbox: SandboxSection) -> Iterator[tuple[tuple[str | int, ...], Problem]]:
    """Yield what is wrong, with its place."""
    for key, paths in (("show", sandbox.show), ("hide", sandbox.hide)):
        for index, path in enumerate(paths):
            problem = _shown_wrong(key, path)
            if problem is None and key == "hide" and path in sandbox.show:
                problem = Problem("", f"{path} is in show too", "name it in one of them")
            if problem:
                yield ("sandbox", key, index), problem


def _shown_wrong(key: str, path: str) -> Problem | None:
    if not any(path == top or path.startswith(f"{top}/") for top in SHOWABLE):
        what = (
            f"{path!r} is not an absolute path below {', '.join(SHOWABLE[:-1])} or {SHOWABLE[-1]}"
        )
        return Problem("", what, _AS_IN)
    if os.path.normpath(path) != path:
        what = f"{path!r} is not the shortest form of this path"
        return Problem("", what, f'write "{os.path.normpath(path)}"')
    if path == "/etc":
        return Problem(
            "", "/etc holds secrets, and what every command needs", "name the parts of it"
        )
    if path == "/usr" and key == "hide":
        return Problem("", "without /usr no command could run", "name the parts of it")
    if path in _MADE:
        return Problem("", f"{path} is not the machine's own: batchd makes it", "leave it out")
    return None


def _pattern_problem(pattern: str) -> Problem | None:
    """Return what is wrong with an entry of ``[workspace] repos``, if anything."""
    if pattern.endswith(f"/{_ANY}"):
        pattern = f"{pattern.removesuffix(_ANY)}any"
    if _url(pattern):
        return None
    return Problem("", f"{pattern!r} is not the URL of a repository", f"{_FORM}, or ends in /*")


def repository_problem(url: str, patterns: Iterable[str]) -> Problem | None:
    """Return why no task may name a URL, if that is so."""
    if not _url(url):
        return Problem("", f"{url!r} is not the URL of a repository", _FORM)
    allowed = tuple(patterns)
    if any(_meets(url, pattern) for pattern in allowed):
        return None
    words = ", ".join(allowed) or "which is empty"
    return Problem("", f"{url} is not in [workspace] repos, {words}", "add it there")


def _url(text: str) -> bool:
    return bool(_URL.fullmatch(text)) and not any(part in {".", ".."} for part in text.split("/"))


def _meets(url: str, pattern: str) -> bool:
    if pattern.endswith(f"/{_ANY}"):
        return url.startswith(pattern.removesuffix(_ANY))
    return url.rstrip("/") == pattern.rstrip("/")
