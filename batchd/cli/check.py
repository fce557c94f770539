"""``batchd check``: what would fail here, and the fix, before a task finds out.

A running daemon is asked what it sees: it has its own rights,
keys and configuration, and who checks may have none of them.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from batchd import (
    catalog,
    config,
    control,
    free_room,
    pricing,
    sandbox,
    silent_paths,
    telemetry,
    users,
)
from batchd.catalog import ModelListing, NoListing
from batchd.cli import orders
from batchd.cli.display import formatting
from batchd.cli.display.formatting import coloured
from batchd.config import operator_files, trust
from batchd.console import wrapped
from batchd.control import Check, Checked, CheckLine, LineVerdict
from batchd.errors import BatchdError, NoAnswerError, NoDaemonError
from batchd.log import escape
from batchd.notify import channels
from batchd.records import PATHS, Endpoint
from batchd.spool import claims, safety
from batchd.spool.outbox import SPOOL, OwnOutboxes, StrangeOutboxError
from batchd.words import counted, listed

#: Columns of a verdict, and the space behind it.
_MARGIN = 7
#: What the daemon gets to look at everything: each provider may take ten seconds (seconds).
_PATIENCE_S = 300.0
#: A folder that is not there, or that this user cannot see: said with what is around it.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP}
_NO_ROOM = {
    "inbox": "no file can be dropped",
    "outbox": "no task is started",
    "state": "tasks may wait at their end, and orders are refused",
}
_REFUSES = frozenset({401, 403})
#: Where each role of a model is configured.
_KEYS = {"agent": "[agent] model", "judge": "[evaluation] judge_model"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "It costs nothing: providers are asked for their lists of models, and for no answer."
    )
    parser.add_argument("--offline", action="store_true", help="ask no provider")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Look at everything; 0 if nothing would fail, else 3."""
    settings = config.load(args.config)  # what is wrong with it ends the command, all at once
    lines = _lines(settings, Check(offline=args.offline))
    if args.json:
        formatting.print_json([control.fields(line) for line in lines])
    else:
        _show(lines)
    return 3 if any(line.verdict == "failed" for line in lines) else 0


def _show(lines: Sequence[CheckLine]) -> None:
    """Print lines for people, what they say beside their verdicts."""
    for line in lines:
        margin = coloured(f"{line.verdict:<6}", line.verdict)
        for text in (f"{line.what}: {line.detail}", f"→ {line.mend}" if line.mend else ""):
            for piece in wrapped(escape(text), formatting.room() - _MARGIN) if text else ():
                print(f"{margin} {piece}")
                margin = " " * (_MARGIN - 1)
    failed = [line.what for line in lines if line.verdict == "failed"]
    formatting.say(
        "", f"{counted(len(failed), 'problem')}: {listed(failed)}" if failed else "No problem."
    )


def _config(settings: config.Config) -> CheckLine:
    """Say which file it is, or that there is none."""
    if settings.file:
        return CheckLine("ok", "config", settings.file)
    said = "none is found: the built-in defaults, and a spool of your own"
    return CheckLine(
        "note", "config", said, f"{trust.spool_command()} makes a spool with a configuration"
    )


def _lines(settings: config.Config, asked: Check) -> list[CheckLine]:
    """Return what a daemon sees, and what of that is otherwise from here;
    without one, what is seen from here.
    """
    state = Path(settings.paths.state)
    if silent_paths.among([settings.paths.state]):  # the way to a daemon leads through it
        return [_config(settings), *look(settings, offline=asked.offline)]
    if users.barred(state):
        raise users.forbidden("what `batchd check` looks at", state)
    try:
        answer = control.ask(state, asked, timeout_s=_PATIENCE_S, heed=orders.heed)
    except NoAnswerError as error:
        fix = "its log may say why; `batchd serve` goes on where one that is killed was"
        daemon = [CheckLine("failed", "daemon", str(error), fix)]
    except NoDaemonError as error:
        daemon = [
            *(CheckLine("failed", "store", refusal) for refusal in orders.refusals(state)),
            CheckLine(
                "note", "daemon", str(error), "`batchd serve` starts one; `batchd run` needs none"
            ),
        ]
    else:
        return [*_of_daemon(settings, answer), *answer.lines]
    return [_config(settings), *daemon, *look(settings, offline=asked.offline)]


def _of_daemon(settings: config.Config, answer: Checked) -> Iterator[CheckLine]:
    """Say who the daemon is, and what configuration it has."""
    its, found = answer.settings, answer.process
    yield CheckLine("ok", "config", its.file or "none: the built-in defaults")
    if settings.file != its.file:
        said = (
            f"this command has read {settings.file or 'no file'}, the daemon {its.file or 'none'}"
        )
        yield CheckLine("note", "config", said, "name the daemon's by --config")
    if its.unread:
        said = f"it is wrong by now, and the daemon keeps what it has: {its.unread}"
        yield CheckLine("failed", "config", said, "correct it: the daemon's next start needs it")
    again = f"`kill -HUP {found.pid}` has it read again"
    for keys, fix in ((its.stale, again), (its.late, "it needs the daemon started again")):
        if keys:
            said = f"the file has {listed(keys)} otherwise than the daemon"
            yield CheckLine("note", "config", said, fix)
    if its.overrides:
        changes = ", ".join(f"{key} = {value}" for key, value in its.overrides.items())
        fix = "`batchd tune --reset` takes that back, and so does the daemon's end"
        yield CheckLine("note", "config", f"`batchd tune` has changed {changes}", fix)
    who = f"{found.user or found.uid} (uid {found.uid})"
    said = (
        f"process {found.pid}, version {found.version}, as {who}, groups {', '.join(found.groups)}"
    )
    yield CheckLine("ok", "daemon", said)


# What a configuration names, with the rights of the process that looks


def look(
    settings: config.Config, *, offline: bool, models: Iterable[str] = ()
) -> Iterator[CheckLine]:
    """Yield a line for each thing; ``models``: those in use beside the configuration's own.

    Blocks, but for no folder that hangs: then that alone is said.
    """
    if hanging := [*_silent(settings)]:
        yield from hanging
        said = "all else is looked at once they answer, for it may need them"
        yield CheckLine("note", "check", said)
        return
    yield from _folders(settings)
    yield from _repositories(settings)
    yield from _machines(settings)
    for found in safety.exposures(settings):
        verdict: LineVerdict = "failed" if found.grave else "note"
        yield CheckLine(verdict, "permissions", f"{found.path}: {found.why}", found.fix)
    yield from _visible(settings)
    for layer in sandbox.check(settings.sandbox_policy()):
        verdict = "ok" if layer.ok else "failed"
        if layer.ok and layer.name == "sandbox" and settings.sandbox.backend == "none":
            verdict = "note"
        yield CheckLine(verdict, layer.name, layer.detail, layer.fix)
    yield from _models(settings, offline=offline, tasks=models)
    for section, why in telemetry.missing(settings).items():
        said, _, fix = why.partition(": ")
        yield CheckLine("failed", section, said, fix)
    if settings.traces.endpoint:
        try:
            settings.traces.all_headers(settings.environ)
        except BatchdError as error:
            yield CheckLine("failed", "traces", str(error))
    yield from _receivers(settings)


def _repositories(settings: config.Config) -> Iterator[CheckLine]:
    """Yield what tasks with a ``repo`` need, where the configuration names any."""
    workspace = settings.workspace
    if workspace.repos and shutil.which("git") is None:
        yield CheckLine("failed", "repositories", "git is not installed", "apt-get install git")
    if workspace.credentials and not os.access(workspace.credentials, os.R_OK):
        fix = "make it, for batchd's user alone, or set [workspace] credentials"
        yield CheckLine("failed", "repositories", f"{workspace.credentials} cannot be read", fix)


def _machines(settings: config.Config) -> Iterator[CheckLine]:
    """Yield the programs that are to start workers elsewhere, and are not there; how a machine
    does, ``status`` says.
    """
    for machine in settings.pool.machines:
        if shutil.which(program := machine.command[0]) is None:
            said = f"there is no program {program}"
            yield CheckLine("failed", f"machine {machine.called}", said, "install it")


def _visible(settings: config.Config) -> Iterator[CheckLine]:
    """Say what commands would see of batchd's own, and what they had better not see."""
    policy = settings.sandbox_policy()
    own, others = operator_files.kept(settings, settings.file), operator_files.exposed(settings)
    try:
        for found in sandbox.seen(policy, own):
            yield CheckLine("failed", "sandbox view", f"{found.place}: {found.message}", found.hint)
        for found in sandbox.seen(policy, others, around=False):
            yield CheckLine("note", "sandbox view", f"{found.place}: {found.message}", found.hint)
    except ValueError:
        return  # the sandbox itself says it


def _receivers(settings: config.Config) -> Iterator[CheckLine]:
    for target in channels.targets(settings):
        for why, fix in channels.problems(target):
            yield CheckLine("failed", f"notify {target.name}", why, fix)


def _silent(settings: config.Config) -> Iterator[CheckLine]:
    """Yield a line for each folder and file of the configuration that does not answer,
    as on a disk over a lost network.
    """
    places = [*operator_files.kept(settings, settings.file), *operator_files.exposed(settings)]
    hanging = silent_paths.among(place.path for place in places)
    for place in places:
        if place.path in hanging:
            what = place.key.removeprefix("[paths] ")
            yield CheckLine("failed", what, f"{place.path} does not answer", silent_paths.FIX)


def _folders(settings: config.Config) -> Iterator[CheckLine]:
    """Yield a line for each folder. Blocks."""
    paths = settings.paths
    yield _folder("inbox", Path(paths.inbox), free_room.INBOX)
    yield _folder("outbox", Path(paths.outbox), free_room.OUTBOX)
    try:
        state = Path(paths.state)
        OwnOutboxes(state, claims.noted(state)).look(paths.outbox)
    except StrangeOutboxError as error:
        yield CheckLine("failed", "outbox", f"{paths.outbox}: {error.strerror}", error.fix)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EACCES}:  # the line above says these
            place = error.filename or f"{paths.outbox}/{SPOOL}"
            yield CheckLine("failed", "outbox", f"{place}: {error.strerror}", f"remove {place}")
    yield _folder("state", Path(paths.state), free_room.ENDS)
    root = settings.workspace.root
    if not Path(root).is_dir():
        yield CheckLine("failed", "workspace", f"{root} is not a directory", "set [workspace] root")


def _folder(name: str, path: Path, needed: free_room.NeededRoom) -> CheckLine:
    """Say whether a folder can be used, or made. The fixes are in the words of a daemon that meets
    the same, so that it is said once.
    """

    def failed(why: str, fix: str) -> CheckLine:
        return CheckLine("failed", name, why, fix)

    try:
        path.stat()
    except OSError as error:
        if error.errno not in _MISSING:  # as of a mount whose server is gone
            fix = f"put the folder back, with its disk mounted, or set [paths] {name}"
            return failed(f"{path}: {error.strerror}", fix)
    # What is missing is made at the start, where its parent lets us.
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    also = "" if there == path else f", so {path} cannot be made"
    make = f"make {path} a directory that this user may write, or set [paths] {name}"
    if not there.is_dir():
        leads = "is a link that leads nowhere" if there.is_symlink() else "is not a directory"
        return failed(f"{there} {leads}{also}", make)
    read_only = free_room.read_only(str(there))
    fix = free_room.MOUNT_WRITABLE if read_only else make if also else free_room.ALLOW_WRITING
    if not os.access(there, os.W_OK | os.X_OK):
        still = ": its disk is mounted read-only" if read_only else ""
        return failed(f"{there} cannot be written{still}{also}", fix)
    try:
        if also:  # only a trial shows what a mode does not, as in /proc
            Path(tempfile.mkdtemp(prefix=".batchd-check-", dir=there)).rmdir()
    except OSError as error:
        return failed(f"{path} cannot be made in {there}: {error.strerror}", fix)
    if missing := free_room.found(str(there)).missing(needed):
        return failed(f"{path}: {missing.why}; until then {_NO_ROOM[name]}", missing.fix)
    return CheckLine("ok", name, f"{path}{' (will be made)' if also else ''}")


def _models(
    settings: config.Config, *, offline: bool, tasks: Iterable[str] = ()
) -> Iterator[CheckLine]:
    """Yield what there is to say of providers and models;
    ``offline``: without a request to any provider.
    """
    named = {"agent": settings.agent.model, "judge": settings.evaluation.judge_model}
    roles = {role: model for role, model in named.items() if model}
    more = [model for model in dict.fromkeys(tasks) if model not in roles.values()]
    roles |= {f"task {model}": model for model in more if "/" in model}
    lists: dict[str, ModelListing | None] = {}
    first = {model.partition("/")[0]: model for model in reversed(roles.values())}
    for provider in dict.fromkeys(model.partition("/")[0] for model in roles.values()):
        line, lists[provider] = _provider(settings, provider, first[provider], offline=offline)
        yield line
        agents = settings.pool.processes * settings.pool.agents_per_process
        if (known := settings.providers.get(provider)) and known.max_concurrent < agents:
            said = f"{agents:,} at a time, and max_concurrent has {provider} called by {known.max_concurrent:,} of them: the others wait"
            fix = f"set max_concurrent = {agents} in [providers.{provider}], if it takes as many"
            yield CheckLine("note", "agents", said, fix)
    lines = (_model(settings, role, model, lists) for role, model in roles.items())
    yield from filter(None, lines)
    yield from _priced(settings, roles)


def _trial(settings: config.Config, model: str) -> str:
    """Return how a key and a model are tried where nothing that is free does it."""
    budget = " --budget 1" if pricing.price(model, settings) else ""  # a limit needs a price
    return f"`batchd run --prompt ok --model {model}{budget}` tries it, for the price of a call"


def _provider(
    settings: config.Config, name: str, model: str, *, offline: bool
) -> tuple[CheckLine, ModelListing | None]:
    """Say whether a provider answers, and takes its key; ``model``: one of its models."""
    what = f"provider {name}"
    try:
        endpoint = settings.endpoint(name)
    except BatchdError as error:
        return CheckLine("failed", what, str(error)), None
    url, key = endpoint.base_url, "its key is there" if endpoint.api_key else "it needs no key"
    if offline:
        return CheckLine("ok", what, f"{url}, {key}; not asked"), None
    found = catalog.ask(endpoint)
    if isinstance(found, NoListing):
        trial = _trial(settings, model)
        return CheckLine(*_unlisted(name, endpoint, found, trial)), None
    has = f"it lists {counted(len(found.models), 'model')}"
    if not endpoint.api_key:
        return CheckLine("ok", what, f"{url} answers, {key}; {has}"), found
    if catalog.keeps_from_strangers(endpoint):
        return CheckLine("ok", what, f"{url} answers, and takes the key; {has}"), found
    said = f"{url} answers; {has}; the key was not tried, for the list needs none"
    return CheckLine("note", what, said, _trial(settings, model)), found


def _unlisted(
    name: str, endpoint: Endpoint, found: NoListing, trial: str
) -> tuple[LineVerdict, str, str, str]:
    """Return what it means that a provider has no list:
    not every server has one, and that it answers is enough.
    """
    what, table, url = f"provider {name}", f"[providers.{name}]", endpoint.base_url
    if found.status in _REFUSES and endpoint.api_key:
        said = f"it refuses the key (HTTP {found.status})"
        return "failed", what, said, f"put a valid key where {table} says"
    if found.status in _REFUSES:
        said = f"it wants a key (HTTP {found.status})"
        return "failed", what, said, f"set api_key_env or api_key_file in {table}"
    if found.moved_to:
        fix = f"set base_url in {table} to where it is: no call follows a redirect"
        return "failed", what, f"{url} redirects to {found.moved_to} ({found.why})", fix
    # An address may end with what each call adds: the path of a dialect.
    bare = url.rstrip("/")
    path = next((f"/{path}" for path in PATHS.values() if bare.endswith(f"/{path}")), "")
    if found.status == 404 and path:  # not found
        fix = f'set base_url = "{bare.removesuffix(path)}" in {table}'
        return "failed", what, f"{url} ends with {path}, which each call adds", fix
    if found.status:
        how = f"with {found.why}" if found.why else "without a list of models"
        untried = "neither the key nor a model" if endpoint.api_key else "no model"
        return "note", what, f"{url} answers {how}: {untried} was tried", trial
    fix = f"check the network and the base_url in {table}"
    return "failed", what, f"{url} cannot be reached: {found.why}", fix


def _model(
    settings: config.Config, role: str, model: str, lists: Mapping[str, ModelListing | None]
) -> CheckLine | None:
    """Say whether a model is there, and for how long."""
    name, _, own = model.partition("/")
    if name not in settings.providers:
        return None  # said above
    key = _KEYS.get(role, "another model in the task files, or `batchd retry --model`")
    what, listing = f"{role} model" if role in _KEYS else "task model", lists.get(name)
    if listing is None:
        said = f"batchd did not try whether {model} is there: no list of its provider's models was read"
        return CheckLine("note", what, said, _trial(settings, model))
    found, today = listing.find(own), datetime.now(UTC).date()
    if not listing.has(own):
        near = [f"{name}/{each}" for each in listing.nearest(own)]
        fix = f"do you mean {listed(near)}?" if near else "take one that it lists"
        ended = f": {found.end(today)}" if found else ""
        said = f"provider {name} has no model {own}{ended}"
        return CheckLine("failed", what, said, f"set {key}: {fix}")
    if found is None:
        said = f"what was read of provider {name}'s list has no {own}, and it may serve that too"
        return CheckLine("note", what, said, _trial(settings, model))
    if found.due(today):
        verdict: LineVerdict = "failed" if found.gone(today) else "note"
        return CheckLine(verdict, what, found.end(today), f"set {key}: take another model")
    return CheckLine("ok", what, f"{model} is there")


def _priced(settings: config.Config, roles: Mapping[str, str]) -> Iterator[CheckLine]:
    for role, model in ((r.partition(" ")[0], model) for r, model in roles.items()):
        if model.partition("/")[0] not in settings.providers:
            continue  # said above
        table = f'[models."{model}"]'
        price = pricing.price(model, settings)
        if price is None:
            fix = f"set input_usd_per_mtok and output_usd_per_mtok in {table}"
            said = f"no price is known for {model}"
            if settings.budget.per_day_usd or settings.limits.max_cost_usd:
                said += ", so none of its tasks can work: a limit in dollars is set"
                yield CheckLine("failed", f"{role} price", said, fix)
            else:
                fix += "; until then no task with a limit in dollars can work"
                yield CheckLine("note", f"{role} price", said, fix)
        else:
            rate = price.rates[0]
            said = f"{model}: ${rate.input:g} in, ${rate.output:g} out a million tokens ({price.source})"
            if price.hours:
                rate = price.now(time.time()).rates[0]
                said += f", at its highest; ${rate.input:g} and ${rate.output:g} at this hour"
            yield CheckLine("ok", f"{role} price", said)
        if not pricing.context_window(model, settings):
            said = f"the window of {model} is not known"
            yield CheckLine("note", f"{role} window", said, f"set context_window in {table}")
