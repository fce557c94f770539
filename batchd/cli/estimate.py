"""``batchd estimate``: what task files may come to, before anything is paid."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchd import config, silent_paths
from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.cli.runs import given_files
from batchd.errors import OlderStoreError
from batchd.log import escape
from batchd.spool import outbox
from batchd.store.queries import StoreReader
from batchd.words import counted, duration, limit, listed, money

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchd.estimate import Estimate, EstimatePart, Spread
    from batchd.spool.taskfile import Parsed

_HEADS = ("TASKS", "CALLS", "TOKENS", "COST", "TIME", "ACCEPTED")
_MILLIONS_FROM = 100_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="task files; -: standard input, as for `run`"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Check the files as `submit` does, and print what they may come to."""
    settings = config.load(args.config)
    silent_paths.refuse(settings.paths.state)
    found, budgets = _estimated([_checked(name, settings) for name in args.files], settings)
    if args.json:
        models = [{"model": name, **dataclasses.asdict(of)} for name, of in found.models.items()]
        fields = {**dataclasses.asdict(found), "models": models, "budgets": budgets.fields()}
        formatting.print_json({"currency": "USD", **fields})
    else:
        formatting.say(*_lines(found, budgets))
    return 0


def _estimated(
    files: Sequence[tuple[str, Parsed]], settings: config.Config
) -> tuple[Estimate, _Budgets]:
    """Return what files may come to, by what the store has, and what limits their money."""
    from batchd.estimate import estimate  # loads all that an agent says; not for wrong arguments

    store = formatting.store_path(Path(settings.paths.state))
    with contextlib.ExitStack() as opened:
        reader = None
        try:
            reader = opened.enter_context(StoreReader(store)) if store.exists() else None
        except OlderStoreError as error:
            formatting.complain(f"batchd: {error}; this estimate knows nothing of its record")
        found = estimate(files, settings, reader)
        today = reader.spend((), since=dt.datetime.now(dt.UTC).date()) if reader else ()
        spent = sum(row.tally.known_usd + row.tally.unsettled_usd for row in today)
    return found, _Budgets(files, settings.budget.per_day_usd, spent)


class _Budgets:
    """What limits the money of tasks, of batches and of the day."""

    def __init__(
        self, files: Sequence[tuple[str, Parsed]], day_usd: float, spent_usd: float
    ) -> None:
        """``spent_usd``: today, up to now."""
        self._tasks = [task.limits.max_cost_usd for _, file in files for task in file.tasks]
        self._batches = {name: file.budget_usd or None for name, file in files}
        self.day_usd = day_usd
        self.left_usd = max(0.0, day_usd - spent_usd)

    def __bool__(self) -> bool:
        return any((*self._tasks, *self._batches.values(), self.day_usd))

    def fields(self) -> dict[str, Any]:
        """Return them for programs; None: there is none."""
        return {
            "tasks_with_limit": sum(map(bool, self._tasks)),
            "batches_usd": self._batches,
            "day_usd": self.day_usd or None,
            "left_today_usd": self.left_usd if self.day_usd else None,
        }

    def line(self) -> str:
        """Return them in words."""
        limited = sorted(filter(None, self._tasks))
        task = " to ".join(dict.fromkeys(limit(usd) for usd in (*limited[:1], *limited[-1:])))
        if 0 < len(limited) < len(self._tasks):
            task += f" for {len(limited):,} of {len(self._tasks):,}"
        batches = [limit(usd) if usd else "none" for usd in self._batches.values()]
        of_each = [f"{usd} for {name}" for usd, name in zip(batches, self._batches, strict=True)]
        batch = listed(of_each) if any(self._batches.values()) else "none"
        day = f"{limit(self.day_usd)}, {limit(self.left_usd)} of it left today (UTC)"
        return escape(
            f"Limits on money  task: {task or 'none'}; batch: {batch}; "
            f"day: {day if self.day_usd else 'none'}"
        )


def _checked(name: str, settings: config.Config) -> tuple[str, Parsed]:
    """Return what a file asks for, after the name that its batch will have unless it is taken."""
    filename, data = given_files.named(name, settings)
    return outbox.batch_name(filename), given_files.parsed(data, filename, settings)


def _lines(found: Estimate, budgets: _Budgets) -> Iterator[str]:
    total, whole = found.total, found.total.in_all
    if total.tasks > 1:
        yield "Per task (80 % of tasks like those on record):"
        accepted = {r.model: f"{r.completed / r.tasks:.0%}" for r in found.history}
        rows = [(*_row(name, part), accepted.get(name, "?")) for name, part in found.models.items()]
        columns = [Column("ONE TASK OF", itemgetter(0), wide="name")]
        columns += [Column(h, itemgetter(n), right=True) for n, h in enumerate(_HEADS, start=1)]
        yield from tables.lines(rows, columns)
        yield ""
    yield f"All {total.tasks:,} tasks together:" if total.tasks > 1 else "The whole batch, 1 task:"
    facts = {
        "first requests": f"{total.first_requests.input_tokens:,} input tokens: system prompt, tools and prompts, "
        f"without what their directories add; {money(total.first_requests.cost)} as new input"
    }
    if whole:
        facts |= {
            "calls": _span(whole.calls, _number, mean=True),
            "tokens": _span(whole.tokens, _number, mean=True),
            "cost": _span(whole.cost, money, mean=True),
        }
    if found.wall_s:
        slots = counted(found.slots, "slot")
        took = _span(found.wall_s, duration, mean=True)
        facts["wall-clock"] = f"{took}, roughly: {slots}, and nothing else at work"
    most = total.at_most
    unlimited = "what days allow" if budgets.day_usd else "money without a limit"
    facts["at most"] = ", ".join(
        [
            "any number of calls" if most.calls is None else counted(most.calls, "call"),
            "any number of tokens" if most.tokens is None else f"{_number(most.tokens)} tokens",
            unlimited if most.cost is None else money(most.cost),
        ]
    )
    yield from formatting.facts(facts, "  ")
    if whole:
        yield (
            "In brackets is what eight in ten lie within, if this batch goes as those on record: "
            "batches differ, and few may be."
        )
    yield from ("", budgets.line(), "")
    for record in found.history:
        known = f"{counted(record.tasks, 'task')} of {counted(record.batches, 'batch')}"
        yield escape(
            f"{record.model}: {counted(record.to_come, 'task')} from {known} on record, of which "
            f"{record.completed:,} completed."
        )
    if missing := total.tasks - total.with_history:
        yield (
            f"No task with the model of {counted(missing, 'task')} has run here, so only their first requests "
            "and limits are in this. For a better estimate: batchd submit --first N FILE"
        )
    yield from _warnings(found, budgets)


def _row(name: str, part: EstimatePart) -> tuple[str, ...]:
    one = part.per_task
    if one is None:
        return (name, f"{part.tasks:,}", *["?"] * 4)
    spans = (
        (one.calls, _number),
        (one.tokens, _number),
        (one.cost, money),
        (one.seconds, duration),
    )
    return (name, f"{part.tasks:,}", *(_span(found, shown) for found, shown in spans))


def _span(found: Spread | None, shown: Callable[[float], str], *, mean: bool = False) -> str:
    if found is None:
        return "unknown"
    low, high = shown(found.low), shown(found.high)
    if low == high:
        return low
    return f"{shown(found.mean)} ({low} to {high})" if mean else f"{low} - {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < _MILLIONS_FROM else f"{value / 1e6:,.2f}M"


def _warnings(found: Estimate, budgets: _Budgets) -> Iterator[str]:
    if found.unpriced:
        names = escape(listed(found.unpriced))
        yield (
            f"No price is known for {names}: set input_usd_per_mtok and output_usd_per_mtok in "
            '[models."PROVIDER/MODEL"], or for a service tier in [models."PROVIDER/MODEL".tiers.TIER].'
        )
        if budgets:
            yield "A limit on money is active: tasks of a model without a price end at once, unpaid."
    most, whole = found.total.at_most.cost, found.total.in_all
    likely = whole.cost.high if whole and whole.cost else most
    if likely is not None and most is not None and likely >= most and whole:
        yield "Limits of tasks or batches may end tasks before they are done."
    if budgets.day_usd and (likely is None or likely > budgets.left_usd):
        yield f"Today's budget has {limit(budgets.left_usd)} left: what does not fit waits for the next day (UTC)."
