"""Constraints that the types of config.toml's values do not show:
control characters, paths, contradictions.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batchd.config import (
    dialect_choice,
    real_paths,
    receivers,
    remote_workers,
    repositories,
    showing,
    telemetry,
    web_page,
)
from batchd.config.sections import ConfigSections, PathsSection
from batchd.errors import Problem
from batchd.records import STANDARD

Place = tuple[str | int, ...]

#: No provider has a longer one; it stands in every line about a call, and in the ledger.
_MODEL_NAME = 512
#: The sections whose tables have names of the user's, and what these are the names of.
_ENTRIES = {"providers": "provider", "notify": "receiver"}


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

    p, w, log = sections.paths, sections.workspace, sections.log
    state = place(p.state)
    traces, page = sections.traces, sections.web
    return replace(
        sections,
        paths=PathsSection(inbox=place(p.inbox), outbox=place(p.outbox), state=state),
        workspace=replace(
            w,
            root=place(w.root),
            allow=tuple(place(a) for a in w.allow),
            credentials=w.credentials and key_file(w.credentials),
            mirrors=place(w.mirrors) if w.mirrors else f"{state}-mirrors",
        ),
        ray=replace(
            sections.ray, token_file=sections.ray.token_file and key_file(sections.ray.token_file)
        ),
        log=replace(log, file=log.file and place(log.file)),
        traces=replace(traces, headers_file=traces.headers_file and key_file(traces.headers_file)),
        web=replace(page, token_file=page.token_file and key_file(page.token_file)),
        providers={
            name: replace(known, api_key_file=known.api_key_file and key_file(known.api_key_file))
            for name, known in sections.providers.items()
        },
        secrets=replace(
            sections.secrets, files={n: key_file(f) for n, f in sections.secrets.files.items()}
        ),
        notify={
            name: replace(
                known,
                url_file=known.url_file and key_file(known.url_file),
                secret_file=known.secret_file and key_file(known.secret_file),
            )
            for name, known in sections.notify.items()
        },
    )


def contradictions(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """What no single value shows: models without a provider, folders within one another."""
    models = {("agent", "model"): config.agent.model}
    if config.evaluation.judge_model:
        models["evaluation", "judge_model"] = config.evaluation.judge_model
    for place, model in models.items():
        if why := model_problem(model, config):
            yield place, why
    yield from remote_workers.problems(config.pool, config.ray, config.workspace, config.sandbox)
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
        if not re.fullmatch(r"([A-Za-z_]\w*)?", provider.api_key_env, re.ASCII):
            # Not quoted: it may be the key itself, put into the wrong place.
            what = "it must be the name of an environment variable, which holds the key"
            yield ("providers", name, "api_key_env"), Problem("", what)
    yield from telemetry.problems(config.metrics, config.traces)
    yield from _receivers(config)
    yield from web_page.problems(config.web)
    yield from _handed_out(config)
    yield from showing.problems(config.sandbox)
    yield from _folders(config)


def _folders(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find folders within one another, and URLs of repositories that are none."""
    keys = ("inbox", "outbox", "state")
    ours = real_paths.real(
        [*(getattr(config.paths, key) for key in keys), config.workspace.mirrors]
    )
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
        if wrong := repositories.pattern_problem(pattern):
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
        if why := dialect_choice.tier_problem(name, model.service_tier or STANDARD, config):
            yield ("models", name, "service_tier"), why
    agent = config.agent
    own = config.models.get(agent.model)
    said = STANDARD if own and own.service_tier else agent.service_tier
    if why := dialect_choice.tier_problem(agent.model, said, config):
        yield ("agent", "service_tier"), why


def reachable(url: str) -> bool:
    """Whether a provider can be reached by an address."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port
        return False
    return named and bool(re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url))


def _receivers(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    for name, receiver in config.notify.items():
        for key, problem in receivers.problems(name, receiver):
            yield ("notify", name, *filter(None, (key,))), problem


def _handed_out(config: ConfigSections) -> Iterator[tuple[Place, Problem]]:
    """Find keys of providers, and secrets of notifications,
    traces and the web page, among what tasks may ask for.
    """
    for what, variables, files in _kept(config):
        problem = Problem("", f"it holds {what}, which no command may see")
        if {*variables} & {*config.secrets.env}:
            yield ("secrets", "env"), problem
        theirs = {os.path.realpath(file) for file in files if file}
        for given, file in config.secrets.files.items():
            if os.path.realpath(file) in theirs:
                yield ("secrets", "files", given), problem


def _kept(config: ConfigSections) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield what is kept from tasks: what it is, its variables, its files."""
    for name, receiver in config.notify.items():
        what = f"a secret of [notify.{name}]"
        yield what, tuple(receivers.variables(receiver)), tuple(receivers.files(receiver))
    yield "the token of [web]", (config.web.token_env,), (config.web.token_file,)
    yield "a key of [traces]", (config.traces.headers_env,), (config.traces.headers_file,)
    for name, provider in config.providers.items():
        yield f"the key of provider {name}", (provider.api_key_env,), (provider.api_key_file,)


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
