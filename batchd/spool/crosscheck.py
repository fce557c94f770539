"""The check of what the form of no single task shows: ids, dependencies, directories, origins,
models, ceilings; then the records.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain, islice
from typing import Any

from batchd import records, words
from batchd.config import Config, providers
from batchd.config.providers import model_problem
from batchd.errors import Problem, near
from batchd.masking import MIN_SECRET_CHARS
from batchd.records import options, policy
from batchd.spool import answer_schemas
from batchd.spool.decoding import Place
from batchd.spool.task_directories import OUTSIDE, TaskDirectories
from batchd.spool.taskspec import RESERVED, BatchKeys, Defaults, SecretSpec, TaskSpec

#: Names that are suggested in one file, each for a look at all ids.
_SUGGESTIONS = 5
#: Cycles that are reported; a chain of thousands may run back into itself at each of its tasks.
_CYCLES = 20

#: Keys that a task takes as they are given; where they are not, the record's own defaults count.
_AS_GIVEN = (
    *("effort", "system_prompt", "priority", "output_schema", "network", "metadata"),
    *("check_first", "check_runs"),
)
#: How the complaint ends of a path where nothing is, or no directory, and what may stand there.
_ABSENT = ("does not exist", "is not a directory")
_DIR = "make it, or leave dir out for a fresh directory"
#: A longer value is not shown.
_SHOWN = 100
#: Characters of a blank prompt that are shown.
_BLANKS = 10
#: What a call of the tier ``flex`` may take, in seconds, unless the task says otherwise.
_FLEX_CALL_S = 900.0

#: The index of a task (None: the batch itself), the place within it, and what is wrong.
Finding = tuple[int | None, Place, Problem]


def check(
    config: Config, batch: BatchKeys, specs: dict[int, TaskSpec], ids: dict[int, str], most: int
) -> tuple[tuple[records.Task, ...], list[Finding]]:
    """Return the tasks of valid specs, and the problems: with any, there are no tasks.

    ``ids`` also names the tasks whose spec is not valid.
    ``most``: after so many problems it looks no further.
    """
    directories = TaskDirectories(config)
    problems: list[Finding] = [
        (None, at, p) for at, p in _own(config, directories, batch, after=False)
    ]
    for index, spec in specs.items():
        if len(problems) >= most:
            break
        own = _own(config, directories, spec, after=bool(spec.after))
        problems += [(index, at, p) for at, p in own]
        problems += [(index, at, p) for at, p in _unasked(config, batch, spec)]
        problems += [(index, at, p) for at, p in _contradictions(batch, spec)]
        if wrong := _prompt_problem(_first(spec.first_prompt, batch.first_prompt)):
            problems.append((index, ("first_prompt",), wrong))
    _outside_once(problems, directories)
    problems += islice(chain(_ids(specs, ids), _dependencies(specs, ids)), most)
    if problems:
        return (), problems
    shared = _split(batch.env or {})
    tasks = (
        _task(config, directories, batch, spec, ids[index], shared=shared)
        for index, spec in specs.items()
    )
    return tuple(tasks), []


def _outside_once(problems: list[Finding], directories: TaskDirectories) -> None:
    """Say once, and with the fix, which paths lie outside of the workspace."""
    outside = [found for found in problems if OUTSIDE in found[2].message]
    if outside:
        index, at, first = outside[0]
        # Of those of all tasks there is no index.
        others = words.listed(
            [f"tasks[{each}]" for each, *_ in outside if each not in {None, index}]
        )
        more = f"; so do those of {others}" if others else ""
        fix = directories.allowing(p.message.partition(OUTSIDE)[0] for _, _, p in outside)
        problems[:] = [found for found in problems if OUTSIDE not in found[2].message]
        problems.append((index, at, Problem("", first.message + more, fix)))


def _prompt_problem(prompt: str | None) -> Problem | None:
    """Return what is wrong with a prompt: it is not there, or blank."""
    if prompt is None:
        return Problem("", "this key is needed")
    if prompt.strip():
        return None
    shown = prompt[:_BLANKS] + ("…" if len(prompt) > _BLANKS else "")
    return Problem("", "it must say what is to be done", f"it is {shown!r}")


def _network_hint(config: Config, wanted: records.Network) -> str:
    """Return what stands there, and what may, where a list of hosts does not say so."""
    shown = json.dumps(wanted)
    given = f"it is {shown}" if len(shown) <= _SHOWN else ""
    return (
        given
        if config.sandbox.network
        else f"{given}; leave it out, or set [sandbox] network".lstrip("; ")
    )


def _own(
    config: Config, directories: TaskDirectories, spec: Defaults, *, after: bool
) -> Iterator[tuple[Place, Problem]]:
    """Yield what is wrong with one task or the batch's defaults, without a look at the others."""
    if spec.model is not None and (wrong := model_problem(spec.model, config)):
        yield ("model",), wrong
    # What does not exist yet may be made by the tasks that it waits for.
    if spec.dir and (why := directories.problem(spec.dir, must_exist=not after)):
        absent = why.endswith(_ABSENT)
        yield ("dir",), Problem("", why, _DIR if absent else "")
    yield from _origin_problems(directories, spec, after=after)
    if spec.network and (why := policy.refusal(spec.network, config.sandbox.network)):
        yield ("network",), Problem("", why, _network_hint(config, spec.network))
    for name, wrong in options.problems(spec.options or {}):
        yield ("options", name), wrong
    if spec.machine and (wrong := _wrong_machine(config, spec.machine)):
        yield ("machine",), wrong
    if spec.output_schema is not None:
        found = answer_schemas.problems(spec.output_schema)
        yield from ((("output_schema", *at), problem) for at, problem in found)
    for name, value in (spec.env or {}).items():
        if isinstance(value, SecretSpec) and (wrong := _secret_problem(config, value)):
            yield ("env", name), wrong
    given = spec.limits.given() if spec.limits else {}
    for name, ceiling in config.limits.ceiling.binding().items():
        asked = given.get(name)
        if asked is not None and (asked == 0 or asked > ceiling):
            more = "no limit is" if asked == 0 else f"{asked:,} is"
            yield ("limits", name), Problem("", f"{more} above [limits.ceiling], {ceiling:,}")


def _origin_problems(
    directories: TaskDirectories, spec: Defaults, *, after: bool
) -> Iterator[tuple[Place, Problem]]:
    """Yield what is wrong with the origin that one task, or a batch, names itself.

    ``after``: its repository may be made first.
    """
    if spec.repo and spec.dir:
        yield ("repo",), Problem("", "a task has a dir or a repo, not both", "leave one out")
    elif spec.repo:
        wrong = directories.repository_problem(spec.repo, must_exist=not after)
        if wrong is None and not _git():
            wrong = Problem("", "git is not installed here", "apt-get install git")
        if wrong:
            yield ("repo",), wrong
    if spec.repo and spec.workspace:
        why = "a repo is always cloned"
        yield ("workspace",), Problem("", why, "leave workspace out")


@functools.cache
def _git() -> bool:
    return shutil.which("git") is not None


def _contradictions(batch: BatchKeys, spec: TaskSpec) -> Iterator[tuple[Place, Problem]]:
    """Yield what does not go together once the task's keys are laid over its batch's."""
    directory, repo = _places(batch, spec)
    if spec.ref and not repo:
        yield ("ref",), Problem("", "it needs a repo", "name one, or leave ref out")
    if (spec.workspace or batch.workspace) == "copy" and not directory and not repo:
        why = "there is no dir to copy"
        yield ("workspace",), Problem("", why, "name one, or leave workspace out")

    def key(name: str) -> Any:
        return _first(getattr(spec, name), getattr(batch, name))

    for name in ("check_first", "check_runs"):
        if key(name) and not key("check"):
            yield (name,), Problem("", "there is no check to run", f"give one, or leave {name} out")
    asked_too = key("evaluator") == "judge" or key("output_schema") is not None
    if key("check_first") is True and asked_too:
        why = "a check that passes would end the task before the judge or the schema is asked"
        yield ("check_first",), Problem("", why, 'set "must_fail", or leave one of them out')


def _place(
    batch: BatchKeys, spec: TaskSpec, directories: TaskDirectories
) -> tuple[str, records.Origin | None]:
    """Return the real path of the directory that a task works in,
    empty for a fresh one, and what that begins as.
    """
    directory, repo = _places(batch, spec)
    if repo:
        source = repo if "://" in repo else directories.real(repo)
        return "", records.Origin(kind="clone", source=source, ref=spec.ref or batch.ref or "")
    if directory and (spec.workspace or batch.workspace) == "copy":
        return "", records.Origin(kind="copy", source=directories.real(directory))
    return (directories.real(directory) if directory else ""), None


def _places(batch: BatchKeys, spec: TaskSpec) -> tuple[str, str]:
    """Return a task's ``dir`` and ``repo``, one of them empty; its own keys win."""
    if spec.repo is not None or spec.dir is not None:
        return spec.dir or "", spec.repo or ""
    return batch.dir or "", batch.repo or ""


def _wrong_machine(config: Config, name: str) -> Problem | None:
    known = [machine.called for machine in config.pool.machines]
    if name in known:
        return None
    fix = near(name, known) or "leave it out, or add it to [pool] machines"
    listed = f"; the known ones are {', '.join(sorted(known))}" if known else ""
    return Problem("", f"no machine {name!a} is configured", fix + listed)


def _unasked(config: Config, batch: BatchKeys, spec: TaskSpec) -> Iterator[tuple[Place, Problem]]:
    """Yield why a task's model cannot be asked for its service tier, or for its options,
    be they the task's, its batch's or the configuration's.
    """
    model = _first(spec.model, batch.model, config.agent.model)
    tier = _first(spec.service_tier, batch.service_tier, config.tier(model)[0])
    if wrong := providers.tier_problem(model, tier, config):
        yield ("service_tier",), wrong
    asked = {**(batch.options or {}), **(spec.options or {})}
    if asked and model.partition("/")[0] in config.providers:
        for name, wrong in options.untaken(asked, model, providers.api(model, config)):
            yield ("options", name), wrong


def _secret_problem(config: Config, secret: SecretSpec) -> Problem | None:
    """Return what is wrong with a secret variable;
    whether its source is there shows when the task starts.
    """
    allowed: tuple[str, ...]
    given = {key: value for key, value in secret if value is not None}
    if len(given) != 1:
        return Problem("", "it needs one of secret, from_env and from_file")
    ((key, value),) = given.items()
    if key == "secret":
        if len(value.strip()) >= MIN_SECRET_CHARS:
            return None
        why = f"a secret of fewer than {MIN_SECRET_CHARS} characters cannot be masked: it is part of any text"
        return Problem("", why)
    place = "[secrets] env" if key == "from_env" else "[secrets.files]"
    allowed = config.secrets.env if key == "from_env" else tuple(config.secrets.files)
    if value in allowed:
        return None
    return Problem(
        "", f"{place} does not name {value!r}", f"it allows {', '.join(allowed) or 'none'}"
    )


def _ids(specs: dict[int, TaskSpec], ids: dict[int, str]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, name in ids.items():
        given = index in specs and specs[index].id is not None
        if given and name in RESERVED:
            yield index, ("id",), Problem("", f"{name!r} is reserved for a file of the batch")
        if name in first:
            other = f"tasks[{first[name]}] has the id {name!r} too"
            hint = "a task without an id has its number in the file, such as 001"
            yield index, ("id",), Problem("", other, hint)
        first.setdefault(name, index)


def _dependencies(specs: dict[int, TaskSpec], ids: dict[int, str]) -> Iterator[Finding]:
    known = {ids[index]: index for index in reversed(ids)}
    meant: dict[str, str] = {}
    for index, spec in specs.items():
        for place, name in enumerate(spec.after or ()):
            if name not in known:
                # Comparing takes seconds where there are thousands.
                if name not in meant and len(meant) < _SUGGESTIONS and len(known) < 1000:
                    meant[name] = near(name, known)
                yield (
                    *(index, ("after", place)),
                    Problem("", f"no task has the id {name!r}", meant.get(name, "")),
                )
    # Where an id is given twice, the first counts, here as in `known`.
    graph = {ids[i]: tuple(specs[i].after or ()) for i in reversed(specs)}
    for cycle in _cycles(graph):
        first = min(cycle, key=known.__getitem__)
        start = cycle.index(first)
        path = cycle[start:] + cycle[:start]
        shown = [*path[:10], "…"] if len(path) > 10 else path  # a line
        why = f"the tasks wait for each other: {' → '.join((*shown, first))}"
        yield known[first], ("after",), Problem("", why)


def _cycles(graph: Mapping[str, tuple[str, ...]]) -> Iterator[list[str]]:
    """Yield tasks that wait for each other, each for the next and the last for the first;
    a task is in one such cycle alone.
    """
    for _ in range(_CYCLES):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found = error.args[1][:0:-1]
            yield found
            graph = {node: after for node, after in graph.items() if node not in found}
        else:
            return


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def _split(
    env: Mapping[str, str | SecretSpec],
) -> tuple[dict[str, str], dict[str, records.Secret]]:
    """Return which variables are plain, and which secret."""
    plain = {name: value for name, value in env.items() if isinstance(value, str)}
    secret = {
        name: records.Secret(
            value=value.secret or "",
            from_env=value.from_env or "",
            from_file=value.from_file or "",
        )
        for name, value in env.items()
        if isinstance(value, SecretSpec)
    }
    return plain, secret


def _task(
    config: Config,
    directories: TaskDirectories,
    batch: BatchKeys,
    spec: TaskSpec,
    name: str,
    *,
    shared: tuple[dict[str, str], dict[str, records.Secret]],
) -> records.Task:
    """Return the record: the task's own keys over its batch's over the configuration's.

    ``shared``: the batch's variables;
    tasks without any of their own have these very ones, however many they are.
    """

    def key(field: str, default: Any) -> Any:
        return _first(getattr(spec, field), getattr(batch, field), default)

    given = {name: value for name in _AS_GIVEN if (value := key(name, None)) is not None}
    directory, origin = _place(batch, spec, directories)
    command = key("check", "")
    env, secrets = _split({**(batch.env or {}), **spec.env}) if spec.env else shared
    model = key("model", config.agent.model)
    tier, fallback_s = config.tier(model)
    tier, fallback = key("service_tier", tier), key("tier_fallback", None)
    evaluator = key("evaluator", "none" if command else config.evaluation.by)
    judge = config.models.get(config.evaluation.judge_model) if evaluator == "judge" else None
    return records.Task(
        id=name,
        first_prompt=key("first_prompt", ""),
        model=model,
        dir=directory,
        origin=origin,
        after=tuple(dict.fromkeys(spec.after or ())),
        evaluator=evaluator,
        check=command,
        check_in=key("check_in", config.evaluation.check_in),
        limits=_limits(config, (tier, judge.service_tier if judge else None), batch, spec),
        service_tier=tier,
        tier_fallback_s=fallback_s if fallback is None else providers.seconds(fallback),
        env=env,
        secrets=secrets,
        machine=key("machine", ""),
        tags=tuple(key("tags", ())),
        options={**(batch.options or {}), **(spec.options or {})},
        **given,
    )


def _limits(
    config: Config, called: Sequence[records.Tier | None], *layers: Defaults
) -> records.TaskLimits:
    """Return a task's limits. ``called``: the service tiers of its calls."""
    limits = config.limits.record()
    if "flex" in called:
        # It is slow by nature: what would be broken off is paid, and sent again.
        limits = replace(limits, call_timeout_s=max(limits.call_timeout_s, _FLEX_CALL_S))
    # A default is lowered in silence; what a file asks for has been refused above the ceiling.
    limits = config.limits.lowered(limits)
    for layer in layers:
        if layer.limits is not None:
            limits = replace(limits, **layer.limits.given())
    return limits
