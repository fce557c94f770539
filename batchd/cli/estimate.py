"""``batchd estimate``: what task files may come to, before anything is paid."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchd import config
from batchd.cli import common
from batchd.cli.submit import read_file
from batchd.log import escape
from batchd.observe.words import counted, duration, listed, money
from batchd.spool import outbox, taskfile
from batchd.store.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchd.estimate import Estimate, File, Part, Range

_HEADS = ("MODEL", "TASKS", "CALLS", "TOKENS", "COST", "TIME")
_LARGE = 100_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="task files; -: standard input")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Check the files as `submit` does, and tell what they may come to."""
    from batchd.estimate import estimate  # noqa: PLC0415 (loads all that an agent says; not for wrong arguments)

    settings = config.load(args.config)
    files = [_checked(name, settings) for name in args.files]
    store = common.store_path(Path(settings.paths.state))
    if store.exists():
        with Reader(store) as reader:
            found = estimate(files, settings, reader)
    else:
        found = estimate(files, settings, None)
    if args.json:
        common.print_json(_told(found))
    else:
        print(*_lines(found, files, settings), sep="\n")
    return 0


def _checked(name: str, settings: config.Config) -> File:
    from batchd.estimate import File  # noqa: PLC0415 (see above)

    filename = "stdin.json" if name == "-" else Path(name).name
    data = sys.stdin.buffer.read() if name == "-" else read_file(name, settings)
    parsed = taskfile.parse(data, filename, settings)
    return File(name=outbox.batch_name(filename), tasks=parsed.tasks, budget_usd=parsed.budget_usd)


def _told(found: Estimate) -> dict[str, Any]:
    """Return the estimate for programs. Stable: more may follow."""

    def part(of: Part) -> dict[str, Any]:
        return {
            "tasks": of.tasks,
            "with_history": of.known,
            "first_requests": {"input_tokens": of.first_tokens, "cost": of.first_cost},
            "per_task": of.one and dataclasses.asdict(of.one),
            "in_all": of.all and dataclasses.asdict(of.all),
            "at_most": dataclasses.asdict(of.at_most),
        }

    return {
        "currency": "USD",
        "models": [{"model": name, **part(of)} for name, of in found.models.items()],
        "total": part(found.total),
        "wall_s": found.wall_s and dataclasses.asdict(found.wall_s),
        "slots": found.slots,
        "history": [dataclasses.asdict(basis) for basis in found.basis],
        "unpriced": found.unpriced,
        "missing_facts": found.missing_facts or None,
    }


def _lines(found: Estimate, files: Sequence[File], settings: config.Config) -> Iterator[str]:
    yield "One task of each model, as eight in ten of its like went:"
    rows = [_row(name, part) for name, part in found.models.items()]
    yield from common.table(_HEADS, rows, right=_HEADS[1:], flexible="MODEL")
    yield ""
    total = found.total
    yield (
        f"First requests   {total.first_tokens:,} input tokens, exactly: system prompt, tools and "
        f"prompts; {money(total.first_cost)} as new input"
    )
    if whole := total.all:
        of = f" of {total.tasks:,}" if total.known < total.tasks else ""
        yield f"In all           for {total.known:,}{of} tasks; eight in ten batches lie within:"
        for name, text in (
            ("calls", _range(whole.calls, _number)),
            ("tokens", _range(whole.tokens, _number)),
            ("cost", _range(whole.cost, money)),
        ):
            yield f"  {name:<15}{text}"
        if found.wall_s:
            slots = counted(found.slots, "slot")
            yield f"  {'wall-clock':<15}{_range(found.wall_s, duration)}, roughly: {slots}, and nothing else at work"
    yield f"At most          {', '.join(_bounds(total))}"
    yield ""
    yield from _rests_on(found)
    yield from _warnings(found, files, settings)


def _row(name: str, part: Part) -> tuple[str, ...]:
    one = part.one
    if one is None:
        return (name, f"{part.tasks:,}", *["?"] * 4)
    spans = (
        (one.calls, _number),
        (one.tokens, _number),
        (one.cost, money),
        (one.seconds, duration),
    )
    return (name, f"{part.tasks:,}", *(_span(found, shown) for found, shown in spans))


def _span(found: Range | None, shown: Callable[[float], str]) -> str:
    if found is None:
        return "unknown"
    low, high = shown(found.low), shown(found.high)
    return low if low == high else f"{low} - {high}"


def _range(found: Range | None, shown: Callable[[float], str]) -> str:
    if found is None:
        return "unknown"
    low, median, high = map(shown, (found.low, found.median, found.high))
    return low if low == high else f"{median} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < _LARGE else f"{value / 1e6:,.2f}M"


def _bounds(total: Part) -> list[str]:
    most = total.at_most
    return [
        "any number of calls" if most.calls is None else counted(most.calls, "call"),
        "any number of tokens" if most.tokens is None else f"{_number(most.tokens)} tokens",
        "money without a limit" if most.cost is None else money(most.cost),
    ]


def _rests_on(found: Estimate) -> Iterator[str]:
    for basis in found.basis:
        known = f"{counted(basis.tasks, 'task')} of {counted(basis.batches, 'batch')}"
        yield escape(
            f"{basis.model}: {counted(basis.to_come, 'task')} from {known} on record ({basis.like})."
        )
    missing = found.total.tasks - found.total.known
    if missing:
        yield (
            f"{counted(missing, 'task')} with nothing like it on record: known are only first requests "
            "and limits. A trial tells more: batchd submit a few of them first."
        )


def _warnings(found: Estimate, files: Sequence[File], settings: config.Config) -> Iterator[str]:
    if found.unpriced:
        names = escape(listed(found.unpriced))
        yield f'No price is known for {names}: set it in [models."PROVIDER/MODEL"].'
        day = settings.budget.per_day_usd
        capped = any(f.budget_usd or any(t.limits.max_cost_usd for t in f.tasks) for f in files)
        if day or capped:
            yield "A limit on money is active: tasks of a model without a price end at once, unpaid."
    if found.missing_facts:
        yield escape(
            f"First requests lack the line of facts about the sandbox, some 80 tokens each: {found.missing_facts}"
        )
    day, whole = settings.budget.per_day_usd, found.total.all
    if day and whole and whole.cost and whole.cost.high > day:
        yield f"The budget of a day is {money(day)}: what does not fit waits for the next one."
