"""The upper part of the screen: the daemon, the work as a whole,
money, providers, and what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from rich.text import Text

from batchd.cli.top.columns import bar
from batchd.control.status import DayStatus
from batchd.log import escape
from batchd.observe import standstill
from batchd.observe.status import Provider, Status
from batchd.records import Scope
from batchd.words import (
    at_least,
    compact,
    counted,
    limit,
    money,
    on_nodes,
    parked_lines,
    rough,
    span,
    unsettled,
)

#: So many providers have a line each, and so many things that wait have two.
_PROVIDERS, _PARKINGS = 5, 2
_BAR = 16
_SMALL_BAR = 8
#: A label's columns, and the most that a provider's name gets.
_LABEL, _LONGEST_LABEL = 7, 14
#: From here on a gauge is red.
_RED_FROM = 0.9


def lines(snapshot: Status, width: int) -> list[Text]:
    """Return the lines, the most important first."""
    names = [escape(p.name) for p in snapshot.providers]
    label = min(_LONGEST_LABEL, max([_LABEL, *(len(name) for name in names)]))
    found = [_daemon(snapshot, width)]
    if daemon := snapshot.daemon:
        if warning := standstill.differs(daemon.version):
            found.append(Text(escape(warning), "bold yellow"))
        for trouble in daemon.troubles:
            what, fix = standstill.trouble_lines(trouble)
            found += [Text(what, "bold red"), Text(fix, "red")]
    found += [_labelled("tasks", _tasks(snapshot), label)]
    if snapshot.left and (snapshot.daemon or snapshot.silent):
        found += [_labelled("speed", _speed(snapshot), label)]
    if snapshot.held:
        verb = "waits" if snapshot.held == 1 else "wait"
        held = f"{counted(snapshot.held, 'task')} {verb} for something else"
        held += ": not in the time left" if snapshot.seconds_left else ""
        found += [_labelled("waits", Text(held, "yellow"), label)]
    if snapshot.daemon and snapshot.daemon.day:
        found += _fitted("today", _day(snapshot, snapshot.daemon.day), label, width)
    for provider in snapshot.providers[:_PROVIDERS]:
        found.append(_labelled(escape(provider.name), _provider(provider), label))
    if (more := len(snapshot.providers) - _PROVIDERS) > 0:
        found.append(Text(f"… and {counted(more, 'provider')} more", "dim"))
    return [*found, *_parked(snapshot)]


def _daemon(snapshot: Status, width: int) -> Text:
    daemon = snapshot.daemon
    if snapshot.silent:
        return Text("The daemon does not answer: what follows is what the store says.", "bold red")
    if daemon is None:
        rest = "; what has not ended goes on then" if snapshot.left else ""
        return Text(f"No daemon runs here; `batchd serve` starts one{rest}.", "bold yellow")
    slots = daemon.slots or len(snapshot.agents)
    doing = ("draining", "bold yellow") if daemon.draining else ("running", "green")
    line = Text.assemble(
        (f"batchd {daemon.version}", "bold"),
        "  ",
        doing,
        f" for {span(max(0.0, snapshot.at - daemon.started_at))}, pid {daemon.pid}  ",
        bar(len(snapshot.agents) / max(1, slots), _SMALL_BAR, "cyan"),
        f" {len(snapshot.agents)}/{slots} agents, {counted(len(daemon.workers), 'worker')}"
        f"{on_nodes(len({worker.node for worker in daemon.workers if worker.node}))}",
    )
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.at))
    gap = width - line.cell_len - len(clock)
    return line.append(" " * gap + clock, "dim") if gap > 1 else line


def _labelled(label: str, line: Text, width: int) -> Text:
    name = Text(label, "dim")
    name.truncate(width, overflow="ellipsis", pad=True)
    return Text.assemble(name, " ", line)


def _fitted(label: str, parts: Sequence[Text], label_width: int, width: int) -> Iterator[Text]:
    """Yield labelled parts in as many lines as they take: none of them is cut for another."""
    line = Text()
    for part in parts:
        if line and label_width + line.cell_len + part.cell_len + 3 > width:
            yield _labelled(label, line, label_width)
            label, line = "", Text()
        line = _joined(line, part)
    yield _labelled(label, line, label_width)


def _joined(*parts: Text | str) -> Text:
    return Text("  ").join(Text(p) if isinstance(p, str) else p for p in parts if p)


def _tasks(snapshot: Status) -> Text:
    """Return the line about all batches that have not ended: what is done, and where the rest
    stands.
    """
    left = [b for b in snapshot.batches if b.published_at is None and b.tasks]
    if not left:
        return Text("nothing is left to do")
    tasks, finished = sum(b.tasks for b in left), sum(b.finished for b in left)
    bad = finished - sum(b.completed for b in left)
    parked = sum(b.parked for b in left)
    return _joined(
        Text.assemble(
            bar(finished / tasks, _BAR, "green"), (f" {finished:,}/{tasks:,} done", "bold")
        ),
        Text(f"✗ {bad:,} failed", "red") if bad else "",
        f"{snapshot.queued:,} queued",
        f"{len(snapshot.agents):,} at work",
        Text(f"{parked:,} parked", "yellow") if parked else "",
    )


def _speed(snapshot: Status) -> Text:
    speed = snapshot.speed
    if speed is None:
        return Text("is known in some seconds", "dim")
    left, hourly = snapshot.seconds_left, speed.usd_a_minute * 60
    usd = f"${hourly:,.2f}" if hourly >= 0.1 else money(hourly)  # from here on cents are enough
    return _joined(
        f"{speed.tasks_a_minute:.1f} tasks/min",
        f"{compact(speed.tokens_a_minute)} tokens/min",
        f"{usd}/h",
        Text(f"about {rough(left)} left", "bold") if left and snapshot.left else "",
    )


def _day(snapshot: Status, day: DayStatus) -> Sequence[Text]:
    """Return what was spent, what of that is not certain, and what is set aside."""
    reserved = round(day.reserved_usd, 8)  # what sums of it leave is none
    held = f"+{money(reserved)} set aside" if reserved > 0 else ""
    doubt = unsettled(snapshot.today.unsettled_usd)
    paid = at_least(snapshot.spent_today_usd, day.spent_usd)
    if not day.limit_usd:
        return [Text(part) for part in (f"{paid} spent (UTC day)", doubt, held) if part]
    part = (day.spent_usd + day.reserved_usd) / day.limit_usd
    gauge = bar(part, _SMALL_BAR, "red" if part >= _RED_FROM else "green")
    spent = f" {paid} of {limit(day.limit_usd)} (UTC day)"
    return [Text.assemble(gauge, spent), *(Text(part) for part in (doubt, held) if part)]


def _provider(provider: Provider) -> Text:
    if provider.parked:
        return Text(f"parked: {provider.parked[0].cause}", "yellow")
    status, rate = provider.status, provider.rate
    used = status.under_way / status.concurrent if status.concurrent else 0.0
    calls = f" {status.under_way}/{status.concurrent} calls"
    return _joined(
        Text.assemble(bar(used, _SMALL_BAR, "cyan"), calls),
        _rate(rate.calls if rate else None, status.rpm, "req/min"),
        _rate(rate.tokens if rate else None, status.tpm, "tok/min"),
        Text(f"{status.waiting} wait", "yellow") if status.waiting else "",
        Text(f"pauses {span(status.paused_s)}", "yellow") if status.paused_s else "",
    )


def _rate(used: float | None, limit: float, unit: str) -> Text:
    if used is None:
        return Text(f"≤{compact(limit)} {unit}" if limit else "")
    if not limit:
        return Text(f"{compact(used)} {unit}")
    gauge = bar(used / limit, _SMALL_BAR // 2, "red" if used / limit >= _RED_FROM else "cyan")
    return Text.assemble(gauge, f" {compact(used)}/{compact(limit)} {unit}")


def _parked(snapshot: Status) -> Iterator[Text]:
    """Yield what waits and the fix: what concerns all first, single tasks last."""
    ranks = [*Scope]
    parked = sorted(snapshot.parked, key=lambda p: ranks.index(p.scope))
    found = [*parked_lines(parked, snapshot.idle)]
    for place, line in enumerate(islice(found, 2 * _PARKINGS)):
        yield Text(line, "dim" if place % 2 else "yellow")
    if (more := len(found) // 2 - _PARKINGS) > 0:
        yield Text(f"… and {more:,} more: batchd status", "dim")
