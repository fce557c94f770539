"""How people write and read: names of tasks, numbers, spans of time, and what waits."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from msgspec import Struct, structs

from batchd.errors import UsageError
from batchd.log import escape
from batchd.records import Cause, Parking, Scope, Tally, dollars

#: What tasks without a tag are shown under.
NO_TAG = "(none)"
#: Names that one line has room for.
_NAMED = 5
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
#: What people read for a stored status that stands for more than one thing, or is a word of ours.
_STATUSES = {"timeout": "not accepted or over a limit", "parked": "waiting"}
#: So many waiting tasks of one batch are shown one by one.
_MAX_NAMED_TASKS = 3


def counted(count: int, noun: str) -> str:
    """Return ``1 task``, ``2,000 tasks``, ``3 batches``."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def amount(count: int) -> str:
    """Return a number of bytes: ``1.3 GiB``."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{count} bytes"


def megabytes(count: int) -> str:
    """Return room on a disk that is given back: ``1.3 MB``, ``12.0 kB``."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"  # 0.1 MB


def on_nodes(nodes: int) -> str:
    """Return `` on 3 nodes``; empty: all is on the daemon's machine."""
    return f" on {counted(nodes, 'node')}" if nodes else ""


def listed(names: Sequence[str]) -> str:
    """Return names as people list them; of many, the first."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def money(usd: float | None) -> str:
    """Return dollars, in the digits that matter."""
    return "unknown" if usd is None else dollars(usd)


def at_least(usd: float | None, known: float) -> str:
    """Return what was spent or, where the price of a part is missing,
    what the rest came to: ``> $0.0326``.
    """
    return f"> {money(known)}" if usd is None and known else money(usd)


def percent(share: float) -> str:
    """Return a share in percent; ``100.0 %`` means all of it, ``0.0 %`` nothing."""
    tenths = round(1000 * share)
    if 0 < share < 1:
        tenths = min(max(tenths, 1), 999)
    return f"{tenths / 10:.1f} %"


def from_cache(share: float | None, saved: float | None) -> str:
    """Return what part of the input came from the provider's prompt cache, and what that saved."""
    if share is None:
        return "not known: the provider says nothing of it"
    part = f"{percent(share)} of the input came from the provider's cache"
    if saved is None:
        return f"{part}; what that saved is not known"
    if round(saved, 12) < 0:
        return f"{part}; to write it cost {money(-saved)} more than it saved"
    return f"{part}, which saved {money(saved)}" if round(saved, 12) else part


def limit(usd: float) -> str:
    """Return what may be spent, as people write it: ``$0.05``, ``$20.00``."""
    return f"${usd:,.2f}" if round(usd, 2) == usd else money(usd)


def near_limits(shares: Mapping[str, float]) -> str:
    """Return the limits that a task came near to: ``92 % of max_calls``."""
    return ", ".join(f"{share:.0%} of {key}".replace("%", " %", 1) for key, share in shares.items())


def of_check(score: float | None, *, first: bool, flaky: bool) -> str:
    """Return what else there is to say of a verdict, behind it: of most nothing."""
    said = [f"score {score:g}"] if score is not None else []
    said += ["before any work"] if first else []
    said += ["a flaky check"] if flaky else []
    return f" ({', '.join(said)})" if said else ""


def unsettled(usd: float) -> str:
    """Return which part of what counts as spent may not have been:
    of calls without an answer on record.
    """
    return f"at most {money(usd)} of it unsettled" if round(usd, 8) > 0 else ""


def uncertain(tally: Tally) -> str:
    """Return what calls without an answer on record may have cost on top; empty: there are none."""
    if not tally.unsettled_calls:
        return ""
    # Nothing at most: they cost nothing, or their price is unknown.
    usd = tally.unsettled_usd
    return f"≤ {money(usd)}" if usd else counted(tally.unsettled_calls, "call")


def compact(count: float) -> str:
    """Return a count in three digits or so: ``950``, ``12.3k``, ``4.56M``."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            part = count / unit
            digits = 2 if part < 9.995 else 1 if part < 99.95 else 0  # three in all
            return f"{part:.{digits}f}{letter}"
    return f"{count:.0f}"


# These three stand a second time in assets/words.js, for pages;
# a test holds both to the same words.


def duration(seconds: float | None) -> str:
    """Return how long something took: ``4.2 s``, ``45 s``,
    ``12:05 min``, ``3:12 h``, ``5 d 4 h``.
    """
    if seconds is None:
        return ""
    tenths = math.floor(seconds * 10 + 0.5)
    return (
        f"{tenths / 10:.1f} s" if tenths < 100 else span(math.floor(seconds + 0.5))
    )  # ten seconds


def span(seconds: float) -> str:
    """Return how long something has gone on, in whole seconds: ``4 s``, ``12:05 min``."""
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}:{whole % _MINUTE_S:02} min"
    hours = whole // _HOUR_S
    if whole < 2 * _DAY_S:
        return f"{hours}:{whole % _HOUR_S // _MINUTE_S:02} h"
    return f"{hours // 24} d {hours % 24} h"


def rough(seconds: float) -> str:
    """Return how long something will take, which is not known to the second:
    ``45 s``, ``12 min``, ``3 h``, ``4 d``.
    """
    for unit, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= 1.5 * unit:
            return f"{math.floor(seconds / unit + 0.5)} {name}"
    return f"{max(5, 5 * math.floor(seconds / 5 + 0.5))} s"


def moment(at: float | None) -> str:
    """Return a moment in local time, as short as it can be."""
    if not at:
        return ""
    now = time.localtime()
    then = time.localtime(at)
    same_day = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def named(scope: str, name: str) -> str:
    """Return a scope as people call it."""
    nameless = {"": "everything that waits", "all": "everything", "day": "the day's budget"}
    return escape(nameless.get(scope) or f"{scope} {name}")


def status(stored: str) -> str:
    """Return the words for a status of a task or a batch of which no reason is known."""
    return _STATUSES.get(stored, stored)


def outcomes(counts: Mapping[str, int]) -> str:
    """Return how tasks ended: ``12 completed, 3 failed``."""
    return ", ".join(f"{count:,} {status(each)}" for each, count in counts.items())


def option(scope: str, name: str) -> str:
    """Return the arguments of ``resume`` that mean a scope."""
    name = shlex.quote(name)
    options = {"all": "--all", "provider": f"--provider {name}", "model": f"--model {name}"}
    options |= {"batch": name, "task": name}
    return options.get(scope, "")


def split_target(target: str) -> tuple[str, str]:
    """Return the batch and the task of ``BATCH[/TASK]``; the task may be empty."""
    batch, _, task = target.strip("/").partition("/")
    if not batch or "/" in task:
        raise UsageError(f"{escape(target)} is neither BATCH nor BATCH/TASK")
    return batch, task


class Standstill(Struct, frozen=True, kw_only=True):
    """Something that waits, as it is shown to people."""

    #: Seconds since the epoch.
    since: float
    what: str
    why: str
    #: How to go on.
    fix: str
    #: When it is tried again by itself, in seconds since the epoch; null: nobody knows.
    again_at: float | None = None
    #: Whether somebody wanted it so.
    paused: bool = False
    #: Whether it is out of order, and no task waits for it.
    unneeded: bool = False
    #: What `resume` is to be given: a scope, and the name of what waits.
    scope: str = ""
    name: str = ""


def standstills(parked: Iterable[Parking], idle: Collection[str] = ()) -> Iterator[Standstill]:
    """Yield what waits, why, and the fix. Many tasks of a batch are shown as one.

    ``idle``: providers and models for which no task waits.
    """
    alone: list[Parking] = []
    of_batches: dict[tuple[str, Cause], list[Parking]] = {}
    for each in parked:
        if each.scope is Scope.TASK:
            of_batches.setdefault((each.name.partition("/")[0], each.cause), []).append(each)
        else:
            alone.append(each)
    for (batch, _), tasks in of_batches.items():
        if len(tasks) <= _MAX_NAMED_TASKS:
            alone += tasks
            continue
        as_one = replace(tasks[0], scope=Scope.BATCH, name=batch)
        yield _standstill(as_one, f"{len(tasks):,} tasks of {batch}")
    for each in alone:
        found = _standstill(each, named(each.scope, each.name))
        if each.scope.asked and each.cause.reason and each.name in idle:
            fix = f"the next task that needs it tries it, none waits; {found.fix}"
            found = structs.replace(found, fix=fix, again_at=None, unneeded=True)
        yield found


def parked_lines(parked: Iterable[Parking], idle: Collection[str] = ()) -> Iterator[str]:
    """Yield two lines for each: what waits and why, and the fix. See ``standstills``."""
    for each in standstills(parked, idle):
        state = "Paused" if each.paused else "Out of order" if each.unneeded else "Waiting"
        yield escape(
            f"{state} since {moment(each.since)}: {each.what}. {each.why}".removesuffix(". ")
        )
        again = f" (next try: {moment(each.again_at)})" if each.again_at else ""
        yield escape(f"  To go on: {each.fix}{again}")


def _standstill(each: Parking, what: str) -> Standstill:
    paused = each.cause is Cause.PAUSED
    said = why(each.cause, each.message)
    resume = f"batchd resume {option(each.scope, each.name)}".rstrip()
    return Standstill(
        since=each.since,
        what=what,
        why=said.removeprefix(Cause.PAUSED).removeprefix(": ") if paused else said,
        fix=each.cause.fix(resume, "batchd retry --failed --model PROVIDER/MODEL BATCH"),
        again_at=each.again_at,
        paused=paused,
        scope=each.scope,
        name=each.name,
    )


def why(cause: str, message: str) -> str:
    """Return a parking's cause, and what was said of it; another version may know other causes."""
    return f"{cause}: {message}" if message != cause else cause
