"""What ``batchd check`` looks at: all that a configuration names,
with the rights of the process that looks.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from batchd import config, free_room, sandbox, silent_paths, telemetry
from batchd.catalog import ModelListing, NoListing, ask, keeps_from_strangers
from batchd.config import operator_files, providers
from batchd.config.providers import APIS, model_problem
from batchd.control import CheckLine, LineVerdict
from batchd.errors import BatchdError
from batchd.masking import Masker
from batchd.notify import channels
from batchd.pricing import Prices
from batchd.records import PATHS, STANDARD, Endpoint
from batchd.spool import claims, safety
from batchd.spool.outbox import SPOOL, OwnOutboxes, StrangeOutboxError
from batchd.words import listed

#: How long something may take to answer the simplest request.
_PATIENCE_S = 10.0


def lines(
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
    yield from _log_file(settings)
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
    if why := telemetry.missing(settings).get("metrics"):
        yield _missing("metrics", why)
    elif settings.metrics.listen:
        said = f"answered at {settings.metrics.listen} while a daemon runs; the port was not tried"
        yield CheckLine("ok", "metrics", said)
    yield from _traces(settings, offline=offline)
    yield from _receivers(settings)


def _repositories(settings: config.Config) -> Iterator[CheckLine]:
    """Yield what tasks with a ``repo`` need, where the configuration names any."""
    workspace = settings.workspace
    if workspace.repos and shutil.which("git") is None:
        yield CheckLine("failed", "repositories", "git is not installed", "apt-get install git")
    if not workspace.credentials:
        return
    if os.access(workspace.credentials, os.R_OK):
        yield CheckLine("ok", "repositories", f"credentials in {workspace.credentials}")
    else:
        fix = "make it, for batchd's user alone, or set [workspace] credentials"
        yield CheckLine("failed", "repositories", f"{workspace.credentials} cannot be read", fix)


def _machines(settings: config.Config) -> Iterator[CheckLine]:
    for machine in settings.pool.machines:
        what, program = f"machine {machine.called}", machine.command[0]
        shown = " ".join(machine.shown)
        if shutil.which(program) is None:
            yield CheckLine("failed", what, f"there is no program {program}", "install it")
        else:
            yield CheckLine(
                "note", what, f"`{shown}` is not tried", "`batchd status` says how it does"
            )


def _log_file(settings: config.Config) -> Iterator[CheckLine]:
    if not settings.log.file:
        return
    # It is not made here: the user who checks may be another than the daemon's.
    path = Path(settings.log.file).resolve()
    place = path if path.exists() else path.parent
    if path.is_dir() or not os.access(place, os.W_OK):
        fix = "make its folder, which this user may write, or set [log] file"
        yield CheckLine("failed", "log", f"{settings.log.file} cannot be written", fix)
    else:
        yield CheckLine("ok", "log", settings.log.file)


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


def _missing(what: str, why: str) -> CheckLine:
    said, _, fix = why.partition(": ")
    return CheckLine("failed", what, said, fix)


def _traces(settings: config.Config, *, offline: bool) -> Iterator[CheckLine]:
    wanted = settings.traces
    if not wanted.endpoint:
        return
    if why := telemetry.missing(settings).get("traces"):
        yield _missing("traces", why)
    try:
        headers = wanted.all_headers(settings.environ)
    except BatchdError as error:
        yield CheckLine("failed", "traces", str(error))
        return
    if offline:
        yield CheckLine("ok", "traces", f"sent to {wanted.endpoint}; not asked")
        return
    headers = {**headers, "Content-Type": "application/x-protobuf", "User-Agent": "batchd"}
    request = urllib.request.Request(wanted.address, b"", headers)  # noqa: S310 (the configuration's check of its scheme)
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=_PATIENCE_S):
            yield CheckLine("ok", "traces", f"{wanted.endpoint} takes them")
    except urllib.error.HTTPError as error:
        error.close()
        fix = "check the address and the headers in [traces]"
        yield CheckLine(
            "failed", "traces", f"{wanted.endpoint} answers with HTTP {error.code}", fix
        )
    except (OSError, ValueError) as error:
        why = Masker(wanted.hidden(settings.environ)).text(str(getattr(error, "reason", error)))
        fix = "start it, or check the network and [traces] endpoint"
        yield CheckLine("failed", "traces", f"{wanted.endpoint} cannot be reached: {why}", fix)


def _receivers(settings: config.Config) -> Iterator[CheckLine]:
    for target in channels.targets(settings):
        what = f"notify {target.name}"
        found = list(channels.problems(target))
        yield from (CheckLine("failed", what, why, fix) for why, fix in found)
        if not found:
            said = (
                f"{target.settings.kind}, notified of: {', '.join(target.settings.on)}; not tried"
            )
            yield CheckLine("ok", what, said, f"batchd notify --test {target.name} tries it")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along to wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None


_NO_ROOM = {
    "inbox": "no file can be dropped",
    "outbox": "no task is started",
    "state": "tasks may wait at their end, and orders are refused",
}

#: A folder that is not there, or that this user cannot see: said with what is around it.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP}


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
    if problem := _unreachable(path):
        fix = f"put the folder back, with its disk mounted, or set [paths] {name}"
        return CheckLine("failed", name, f"{path}: {problem}", fix)
    # What is missing is made at the start, where its parent lets us.
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if problem := _unfit(path, there):
        return CheckLine("failed", name, problem, _fix(name, path, there))
    if missing := free_room.found(str(there)).missing(needed):
        problem = f"{path}: {missing.why}; until then {_NO_ROOM[name]}"
        return CheckLine("failed", name, problem, missing.fix)
    return CheckLine("ok", name, f"{path}{'' if there == path else ' (will be made)'}")


def _unreachable(path: Path) -> str:
    """Return why the system does not even say whether a folder is there,
    as of a mount whose server is gone; empty: it does.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _MISSING:
            return error.strerror or str(error)
    return ""


def _unfit(path: Path, there: Path) -> str:
    """Return why a folder cannot be used, or made, with this process's rights;
    empty: it can. ``there``: the nearest that exists, of it and those above.
    """
    if not there.is_dir():
        leads = "is a link that leads nowhere" if there.is_symlink() else "is not a directory"
        return f"{there} {leads}" + ("" if there == path else f", so {path} cannot be made")
    if not os.access(there, os.W_OK | os.X_OK):
        still = ": its disk is mounted read-only" if free_room.read_only(str(there)) else ""
        return f"{there} cannot be written{still}" + (
            "" if there == path else f", so {path} cannot be made"
        )
    if there != path:
        try:
            # Only a trial shows what a mode does not, as in /proc.
            Path(tempfile.mkdtemp(prefix=".batchd-check-", dir=there)).rmdir()
        except OSError as error:
            return f"{path} cannot be made in {there}: {error.strerror}"
    return ""


def _fix(name: str, path: Path, there: Path) -> str:
    """Return what the user can do about a folder that is unfit,
    in the words of a daemon that meets it, so that it is said once.
    """
    if there.is_dir() and free_room.read_only(str(there)):
        return free_room.MOUNT_WRITABLE
    if there == path and there.is_dir():
        return free_room.ALLOW_WRITING
    return f"make {path} a directory that this user may write, or set [paths] {name}"


_REFUSES = frozenset({401, 403})
#: Where each role of a model is configured.
_KEYS = {"agent": "[agent] model", "judge": "[evaluation] judge_model"}


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
    for name, why in providers.notes(settings, roles).items():
        fix = f'set api = "{APIS[name]}" in [providers.{name}] if it speaks that, or "chat"'
        said = f"it is spoken to in chat completions, as {why}"
        yield CheckLine("note", f"provider {name}", said, fix)
    for role, model in roles.items():
        yield from _model(settings, role, model, lists)
    yield from _priced(settings, roles)
    for name in settings.models:
        # What a table of no model that a call can name sets holds for none.
        wrong = model_problem(name, settings)
        if wrong is not None and name not in settings.cost.compare:
            yield CheckLine("note", f'[models."{name}"]', wrong.message, wrong.hint)


def _trial(settings: config.Config, model: str) -> str:
    """Return how a key and a model are tried where nothing that is free does it."""
    provider = settings.providers.get(model.partition("/")[0])
    priced = provider and Prices(settings.models).price(model, provider.base_url)
    budget = " --budget 1" if priced else ""  # a limit needs a price
    return f"`batchd run --prompt ok --model {model}{budget}` tries it, for the price of a call"


def _provider(
    settings: config.Config, name: str, model: str, *, offline: bool
) -> tuple[CheckLine, ModelListing | None]:
    """Say whether a provider answers, and takes its key; ``model``: one of its models."""
    try:
        endpoint = settings.endpoint(name)
    except BatchdError as error:
        return CheckLine("failed", f"provider {name}", str(error)), None
    key = "its key is there" if endpoint.api_key else "it needs no key"
    if offline:
        return CheckLine("ok", f"provider {name}", f"{endpoint.base_url}, {key}; not asked"), None
    found = ask(endpoint)
    if isinstance(found, NoListing):
        return _unlisted(settings, name, model, endpoint, found), None
    count = len(found.models)
    has = f"it lists {count:,} model{'s' * (count != 1)}"
    if not endpoint.api_key:
        said = f"{endpoint.base_url} answers, {key}; {has}"
    elif keeps_from_strangers(endpoint):
        said = f"{endpoint.base_url} answers, and takes the key; {has}"
    else:
        said = f"{endpoint.base_url} answers; {has}; the key was not tried, for the list needs none"
        return CheckLine("note", f"provider {name}", said, _trial(settings, model)), found
    return CheckLine("ok", f"provider {name}", said), found


def _unlisted(
    settings: config.Config, name: str, model: str, endpoint: Endpoint, found: NoListing
) -> CheckLine:
    """Return what it means that a provider has no list:
    not every server has one, and that it answers is enough.
    """
    what = f"provider {name}"
    if found.status in _REFUSES and endpoint.api_key:
        fix = f"put a valid key where [providers.{name}] says"
        return CheckLine("failed", what, f"it refuses the key (HTTP {found.status})", fix)
    if found.status in _REFUSES:
        fix = f"set api_key_env or api_key_file in [providers.{name}]"
        return CheckLine("failed", what, f"it wants a key (HTTP {found.status})", fix)
    if found.moved_to:
        fix = f"set base_url in [providers.{name}] to where it is: no call follows a redirect"
        said = f"{endpoint.base_url} redirects to {found.moved_to} ({found.why})"
        return CheckLine("failed", what, said, fix)
    url = endpoint.base_url.rstrip("/")
    # An address may end with what each call adds: the path of a dialect.
    path = next((f"/{path}" for path in PATHS.values() if url.endswith(f"/{path}")), "")
    if found.status == 404 and path:  # not found
        right = url.removesuffix(path)
        said = f"{endpoint.base_url} ends with {path}, which each call adds"
        return CheckLine("failed", what, said, f'set base_url = "{right}" in [providers.{name}]')
    if found.status:
        how = f"with {found.why}" if found.why else "without a list of models"
        untried = "neither the key nor a model" if endpoint.api_key else "no model"
        said = f"{endpoint.base_url} answers {how}: {untried} was tried"
        return CheckLine("note", what, said, _trial(settings, model))
    fix = f"check the network and the base_url in [providers.{name}]"
    return CheckLine("failed", what, f"{endpoint.base_url} cannot be reached: {found.why}", fix)


def _model(
    settings: config.Config, role: str, model: str, lists: Mapping[str, ModelListing | None]
) -> Iterator[CheckLine]:
    """Say whether a model is there, and for how long."""
    name, _, own = model.partition("/")
    provider = settings.providers.get(name)
    if provider is None:
        return  # said above
    key = _KEYS.get(role, "another model in the task files, or `batchd retry --model`")
    what, listing = f"{role} model" if role in _KEYS else "task model", lists.get(name)
    found, today = listing.find(own) if listing else None, datetime.now(UTC).date()
    if listing is not None and not listing.has(own):
        near = [f"{name}/{each}" for each in listing.nearest(own)]
        fix = f"do you mean {listed(near)}?" if near else "take one that it lists"
        said = f"provider {name} has no model {own}"
        said += f": {found.end(today)}" if found else ""
        yield CheckLine("failed", what, said, f"set {key}: {fix}")
    elif found is not None and found.due(today):
        verdict: LineVerdict = "failed" if found.gone(today) else "note"
        yield CheckLine(verdict, what, found.end(today), f"set {key}: take another model")
    elif found is not None:
        yield CheckLine("ok", what, f"{model} is there")
    else:
        if listing is None:
            said = f"batchd did not try whether {model} is there: no list of its provider's models was read"
        elif listing.any_name:
            said = f"provider {name} serves one model under any name, {own} too"
        else:
            count = f"{len(listing.models):,}"
            said = (
                f"batchd read the first {count} models of provider {name}: {own} is not among them"
            )
        yield CheckLine("note", what, said, _trial(settings, model))


def _priced(settings: config.Config, roles: Mapping[str, str]) -> Iterator[CheckLine]:
    prices = Prices(settings.models)
    for role, model in ((r.partition(" ")[0], model) for r, model in roles.items()):
        provider = settings.providers.get(model.partition("/")[0])
        if provider is None:
            continue  # said above
        price = prices.price(model, provider.base_url)
        window = prices.context_window(model, provider.base_url)
        if price is None:
            keys = "input_usd_per_mtok and output_usd_per_mtok"
            fails = settings.budget.per_day_usd or settings.limits.max_cost_usd
            fix = f'set {keys} in [models."{model}"]'
            fix += "" if fails else "; until then no task with a limit in dollars can work"
            why = ", so none of its tasks can work: a limit in dollars is set" if fails else ""
            verdict: LineVerdict = "failed" if fails else "note"
            yield CheckLine(verdict, f"{role} price", f"no price is known for {model}{why}", fix)
        else:
            rate = price.rates[0]
            said = f"{model}: ${rate.input:g} in, ${rate.output:g} out a million tokens ({price.source})"
            if price.hours:
                rate = price.now(time.time()).rates[0]
                said += f", at its dearest; ${rate.input:g} and ${rate.output:g} at this hour"
            yield CheckLine("ok", f"{role} price", said)
            # What [agent] says of tiers is of the tasks' own model.
            if role == "agent" or model == settings.agent.model:
                tier = settings.tier(model)[0]
            else:
                known = settings.models.get(model)
                tier = (known and known.service_tier) or STANDARD
            if price.at(tier) is None:
                fix = f'set its prices in [models."{model}".tiers.{tier}]; until then no task with a limit in dollars can work'
                why = f"no price is known for {model} in its service tier {tier}"
                yield CheckLine("note", f"{role} price", why, fix)
        if not window:
            fix = f'set context_window in [models."{model}"]'
            yield CheckLine("note", f"{role} window", f"the window of {model} is not known", fix)
