"""What no single task shows: ids, dependencies, directories, models, ceilings; then the records."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from batchd import records
from batchd.config import Config
from batchd.config.checking import model_problem
from batchd.errors import Problem
from batchd.masking import LEAST
from batchd.records import hosts
from batchd.spool.decoding import Place
from batchd.spool.directories import Directories
from batchd.spool.taskspec import RESERVED, BatchKeys, Defaults, SecretSpec, TaskSpec

#: The index of a task (None: the batch itself), the place within it, and what is wrong.
Finding = tuple[int | None, Place, Problem]


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome: tasks that count only where there are no problems."""

    tasks: tuple[records.Task, ...]
    problems: tuple[Finding, ...]


def check(
    config: Config, batch: BatchKeys, specs: dict[int, TaskSpec], ids: dict[int, str]
) -> Checked:
    """Return the tasks of valid specs; ``ids`` also names those whose spec is not valid."""
    directories = Directories(config)
    problems: list[Finding] = [
        (None, at, p) for at, p in _own(config, directories, batch, after=False)
    ]
    for index, spec in specs.items():
        own = _own(config, directories, spec, after=bool(spec.after))
        problems += [(index, at, p) for at, p in own]
        if not (_first(spec.first_prompt, batch.first_prompt) or "").strip():
            problems.append((index, ("first_prompt",), Problem("", "this key is needed")))
    problems += _ids(specs, ids)
    problems += _dependencies(specs, ids)
    if problems:
        return Checked((), tuple(problems))
    return Checked(
        tuple(_task(config, directories, batch, spec, ids[i]) for i, spec in specs.items()), ()
    )


def _own(
    config: Config, directories: Directories, spec: Defaults, *, after: bool
) -> Iterator[tuple[Place, Problem]]:
    """Yield what is wrong with one task or the batch's defaults, without a look at the others."""
    if spec.model is not None and (wrong := model_problem(spec.model, config)):
        yield ("model",), wrong
    # What does not exist yet may be made by the tasks that it waits for.
    if spec.dir and (why := directories.problem(spec.dir, must_exist=not after)):
        yield ("dir",), Problem("", why)
    if spec.network and (why := hosts.refusal(spec.network, config.sandbox.network)):
        yield ("network",), Problem("", why)
    if spec.output_schema is not None:
        yield from _schema(spec.output_schema)
    for name, value in (spec.env or {}).items():
        if isinstance(value, SecretSpec) and (wrong := _secret_problem(config, value)):
            yield ("env", name), wrong
    for name, ceiling in _ceiling(config).items():
        asked = getattr(spec.limits, name, None)
        if asked is not None and (asked == 0 or asked > ceiling):
            more = "no limit is" if asked == 0 else f"{asked:,} is"
            yield ("limits", name), Problem("", f"{more} above [limits.ceiling], {ceiling:,}")


def _secret_problem(config: Config, secret: SecretSpec) -> Problem | None:
    """Return what is wrong with a secret variable; whether its source is there shows when the task starts."""
    allowed: tuple[str, ...]
    given = {key: value for key, value in secret if value is not None}
    if len(given) != 1:
        return Problem("", "it needs one of secret, from_env and from_file")
    ((key, value),) = given.items()
    if key == "secret":
        if len(value.strip()) >= LEAST:
            return None
        why = f"a secret of fewer than {LEAST} characters cannot be masked: it is part of any text"
        return Problem("", why)
    place = "[secrets] env" if key == "from_env" else "[secrets.files]"
    allowed = config.secrets.env if key == "from_env" else tuple(config.secrets.files)
    if value in allowed:
        return None
    return Problem(
        "", f"{place} does not name {value!r}", f"it names {', '.join(allowed) or 'none'}"
    )


def _schema(schema: dict[str, Any]) -> Iterator[tuple[Place, Problem]]:
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415 (100 ms that few files need)

    kind = validators.validator_for(schema, default=Draft202012Validator)
    # The format checker finds patterns that are no regular expressions.
    meta = kind(kind.META_SCHEMA, format_checker=kind.FORMAT_CHECKER)
    try:
        for error in meta.iter_errors(schema):
            why = f"it is no valid JSON Schema: {error.message[:200]}"
            yield ("output_schema", *error.path), Problem("", why)
    except RecursionError:
        yield ("output_schema",), Problem("", "it is nested too deep")
    waiting: list[tuple[Place, Any]] = [(("output_schema",), schema)]
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, dict):
            reference = item.get("$ref")
            # Fetching a schema would let a task file make the worker call any address.
            if isinstance(reference, str) and not reference.startswith("#"):
                yield (*at, "$ref"), Problem("", "it must lie in this schema", "#/$defs/…")
            waiting += [((*at, key), below) for key, below in item.items()]
        elif isinstance(item, list):
            waiting += [((*at, index), below) for index, below in enumerate(item)]


def _ceiling(config: Config) -> dict[str, float]:
    """Return the ceilings that bind."""
    ceiling = config.limits.ceiling
    return {f.name: cap for f in fields(ceiling) if (cap := getattr(ceiling, f.name))}


def _ids(specs: dict[int, TaskSpec], ids: dict[int, str]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, name in ids.items():
        given = index in specs and specs[index].id is not None
        if given and name in RESERVED:
            yield index, ("id",), Problem("", f"{name!r} is reserved for a file of the batch")
        if name in first:
            other = f"the task at place {first[name] + 1} has the id {name!r} too"
            yield index, ("id",), Problem("", other, "without an id, its 3-digit place is its id")
        first.setdefault(name, index)


def _dependencies(specs: dict[int, TaskSpec], ids: dict[int, str]) -> Iterator[Finding]:
    known = {ids[index]: index for index in reversed(ids)}
    for index, spec in specs.items():
        for place, name in enumerate(spec.after or ()):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1) if len(known) < 1000 else []  # noqa: PLR2004 (beyond, it takes seconds)
                mend = f"do you mean {near[0]}?" if near else ""
                yield index, ("after", place), Problem("", f"no task has the id {name!r}", mend)
    # Where an id is given twice, the first counts, here as in `known`.
    graph = {ids[i]: tuple(specs[i].after or ()) for i in reversed(specs)}
    for cycle in _cycles(graph):
        told = " → ".join(cycle if len(cycle) < 12 else (*cycle[:10], "…", cycle[-1]))  # noqa: PLR2004 (a line)
        yield known[cycle[0]], ("after",), Problem("", f"the tasks wait for each other: {told}")


def _cycles(graph: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield cycles, at least one where there is any: a walk with its own stack, as chains may be long."""
    done: set[str] = set()
    for start in graph:
        path: dict[str, Iterator[str]] = {}
        node: str | None = start if start not in done else None
        while node is not None:
            path.setdefault(node, iter(graph.get(node, ())))
            below = next(path[node], None)
            if below is None:
                del path[node]
                done.add(node)
            elif below in path:
                names = list(path)
                yield (*names[names.index(below) :], below)
            elif below not in done:
                node = below
                continue
            node = next(reversed(path), None)


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def _task(
    config: Config, directories: Directories, batch: BatchKeys, spec: TaskSpec, name: str
) -> records.Task:
    """Return the record: the task's own keys over its batch's over the configuration's."""

    def key(field: str, default: Any) -> Any:
        return _first(getattr(spec, field), getattr(batch, field), default)

    directory = key("dir", "")
    command = key("check", "")
    env = {**(batch.env or {}), **(spec.env or {})}
    return records.Task(
        id=name,
        first_prompt=key("first_prompt", ""),
        model=key("model", config.agent.model),
        dir=directories.real(directory) if directory else "",
        system_prompt=key("system_prompt", ""),
        priority=key("priority", 0),
        after=tuple(dict.fromkeys(spec.after or ())),
        evaluator=key("evaluator", "none" if command else config.evaluation.by),
        check=command,
        output_schema=key("output_schema", None),
        limits=_limits(config, batch, spec),
        network=key("network", False),
        env={name: value for name, value in env.items() if isinstance(value, str)},
        secrets={
            name: records.Secret(
                value=value.secret or "",
                from_env=value.from_env or "",
                from_file=value.from_file or "",
            )
            for name, value in env.items()
            if isinstance(value, SecretSpec)
        },
        tags=tuple(key("tags", ())),
        metadata=key("metadata", {}),
    )


def _limits(config: Config, *layers: Defaults) -> records.Limits:
    values = {f.name: getattr(config.limits, f.name) for f in fields(records.Limits)}
    for name, ceiling in _ceiling(config).items():
        # A default is lowered in silence; what a file asks for has been refused above the ceiling.
        values[name] = min(values[name] or ceiling, ceiling)
    for layer in layers:
        if layer.limits is not None:
            values |= layer.limits.model_dump(exclude_none=True)
    return records.Limits(**values)
