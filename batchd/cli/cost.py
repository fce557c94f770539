"""``batchd cost``: what was spent, split every way; and what tokens cost with other models: those
on record, or counts given by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeAlias, cast

from batchd import config
from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.errors import UsageError
from batchd.log import escape
from batchd.pricing import Elsewhere, compared, elsewhere
from batchd.records import Tally, Tokens
from batchd.store.queries import SPLITS, Split, StoreReader, named
from batchd.store.rows import SpendRow
from batchd.words import NO_TAG, at_least, counted, from_cache, money, uncertain

#: What the rows for programs hold behind what they are split by.
#: Stable: more may follow at the end.
COLUMNS = (
    *("calls", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"),
    *("reasoning_tokens", "estimated_calls", "unpriced_calls", "input_usd", "output_usd"),
    *("cost_usd", "unsettled_calls", "unsettled_usd"),
    *("cache_write_long_tokens", "cache_reported_tokens", "cache_share", "cache_saved"),
    # What `cost_usd` is where every price is known,
    # and what the other calls came to where one is missing.
    "known_usd",
)

#: What people are shown: what it was split by, and how much that is.
_Line: TypeAlias = tuple[tuple[str, ...], Tally]
_FIGURES: tuple[Column[_Line], ...] = (
    Column("CALLS", lambda line: f"{line[1].calls:,}", right=True),
    Column("INPUT", lambda line: f"{line[1].input_tokens:,}", right=True),
    Column("CACHED", lambda line: f"{line[1].cached_input_tokens:,}", right=True),
    Column("OUTPUT", lambda line: f"{line[1].output_tokens:,}", right=True),
    Column("COST", lambda line: at_least(line[1].cost_usd, line[1].known_usd), right=True),
    # Left out where there is nothing of it: the room is the names'.
    Column("UNSETTLED", lambda line: uncertain(line[1]), right=True, optional=True),
)

#: More tokens than any account has, and few enough to be multiplied.
_MAX_TOKENS = 10**15
#: Parts of the ledger as small as it has them: the average call of each says more than that of all.
_PARTS: tuple[Split, ...] = ("day", "batch", "provider", "model", "purpose")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("batch", nargs="?", metavar="BATCH", help="show one batch only")
    parser.add_argument(
        "--by",
        type=_splits,
        metavar="SPLIT,…",
        help=(
            f"a line for each: {', '.join(SPLITS)}, or several of them (default: batch; for "
            "one batch: model)"
        ),
    )
    for option, help_text in (
        ("--since", "from this day on: 2026-11-24, today or yesterday"),
        ("--until", "up to and including this day; days are in UTC"),
    ):
        parser.add_argument(option, type=formatting.day, metavar="DAY", help=help_text)
    for name, what in (("model", "with or without its provider"), ("provider", ""), ("tag", "")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar=name.upper(),
            help=f"only this {name}{f', {what}' if what else ''}; repeat it for more",
        )
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="MODEL",
        help="what the same tokens cost with these models (default: [cost] compare)",
    )
    parser.add_argument(
        "--tokens", metavar="IN,OUT", help="price these counts instead of recorded calls"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument("--csv", action="store_true", help="print CSV, for spreadsheets")


def run(args: argparse.Namespace) -> int:
    """Print money."""
    if args.tokens is not None:
        settings = config.load(args.config)
        models = args.compare or (settings.agent.model, *settings.cost.compare)
        return _compare(args, elsewhere(compared(settings, models), [_usage(args.tokens)]), None)
    if args.by and args.compare is not None:
        raise UsageError("--compare prices everything together: leave --by out")
    asked = _asked(args)
    with StoreReader(formatting.store_path(formatting.state_directory(args.config))) as reader:
        if asked["batch"]:
            reader.batch(asked["batch"])  # raises where there is none: no money is not the same
        if args.compare is None:
            return _split(args, reader, asked)
        settings = config.load(args.config)
        used = [row.tally for row in reader.spend(_PARTS, **asked)]
        spent = next((row.tally for row in reader.spend((), **asked)), None)
        return _compare(args, elsewhere(compared(settings, args.compare), used), spent)


def _split(args: argparse.Namespace, reader: StoreReader, asked: dict[str, Any]) -> int:
    """Print the ledger, split."""
    by: tuple[Split, ...] = args.by or (("model",) if asked["batch"] else ("batch",))
    known = named(by)
    rows, totals = reader.spend(known, **asked), reader.spend((), **asked)
    if args.json or args.csv:
        programs: list[Column[SpendRow]] = [Column(name, attrgetter(name)) for name in known]
        programs += [Column(name, attrgetter(f"tally.{name}")) for name in COLUMNS]
        untagged = NO_TAG if args.csv else None
        tagged = (replace(row, tag=untagged if row.tag is None else row.tag) for row in rows)
        tables.table(tagged, programs, "csv" if args.csv else "json")
        return 0
    lines = [(tuple(map(row.name, by)), row.tally) for row in rows]
    lines += [(("total", *[""] * (len(by) - 1)), row.tally) for row in totals]
    splits: list[Column[_Line]] = [
        Column(name.upper(), lambda line, place=place: line[0][place], wide="name")  # type: ignore[misc]
        for place, name in enumerate(by)
    ]
    tables.table(lines, (*splits, *_FIGURES))
    if not totals:
        formatting.say("Nothing is on record for that.")
        return 0
    total = totals[0].tally
    if "tag" in by and sum(row.tally.calls for row in rows) > total.calls:
        formatting.say("A task with several tags counts under each: the total is not their sum.")
    if total.calls:
        formatting.say(f"Prompt cache: {from_cache(total.cache_share, total.cache_saved)}.")
    if total.unpriced_calls:
        formatting.say(
            f"No price is known for {total.unpriced_calls:,} of {total.calls:,} calls: "
            'set input_usd_per_mtok and output_usd_per_mtok in [models."PROVIDER/MODEL"] for future calls.'
        )
    return 0


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what of the ledger is asked for."""
    if args.since and args.until and args.since > args.until:
        raise UsageError(f"--since {args.since} is after --until {args.until}")
    return {
        "batch": args.batch,
        "since": args.since,
        "until": args.until,
        "models": args.model,
        "providers": args.provider,
        "tags": args.tag,
    }


def _splits(text: str) -> tuple[Split, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in SPLITS]:
        raise argparse.ArgumentTypeError(
            f"{escape(', '.join(unknown)) or 'nothing'} is not one of {', '.join(SPLITS)}"
        )
    return cast("tuple[Split, ...]", names)


def _usage(text: str) -> Tokens:
    """Return ``IN,OUT`` tokens, as one call. Raises ``UsageError``."""
    try:
        taken, made = (int(n.replace("_", "")) for n in text.split(","))
    except ValueError:
        taken = made = -1
    if not (0 <= taken <= _MAX_TOKENS and 0 <= made <= _MAX_TOKENS):
        raise UsageError(
            f"--tokens needs two counts, as in --tokens 120000,8000, not {escape(text[:40])}"
        )
    return Tokens(calls=1, input_tokens=taken, output_tokens=made)


def _compare(args: argparse.Namespace, priced: Sequence[Elsewhere], spent: Tally | None) -> int:
    """Print what the same tokens cost with several models.

    ``spent``: what the ledger says of them; None: they were given by hand, or there are none.
    """
    really = spent.cost_usd if spent else None
    programs: tuple[Column[Elsewhere], ...] = (
        Column("model", lambda p: p.model),
        Column("total", lambda p: p.total),
        Column("source", lambda p: p.price.source if p.price else None),
        Column("ratio", lambda p: p.ratio(really)),
        Column("spent", lambda p: really),
        Column("unsettled", lambda p: spent.unsettled_usd if spent else None),
        Column("averaged", lambda p: p.averaged),
        Column("dearest", lambda p: p.at_highest),
    )
    if args.json or args.csv:
        tables.table(priced, programs, "csv" if args.csv else "json")
        return 0
    people: tuple[Column[Elsewhere], ...] = (
        Column("MODEL", lambda p: p.model, wide="name"),
        Column("COST", lambda p: money(p.total), right=True),
        Column(
            "RATIO", lambda p: f"{r:.2f}" if (r := p.ratio(really)) is not None else "", right=True
        ),
        Column("PRICES", lambda p: p.price.source if p.price else ""),
    )
    tables.table(priced, people)
    if spent:
        known = f"Really spent: {at_least(spent.cost_usd, spent.known_usd)}"
        if spent.unpriced_calls:
            known += f", as no price is known for {spent.unpriced_calls:,} of {spent.calls:,} calls"
        formatting.say(f"{known}.")
        if spent.unsettled_calls:
            most = spent.unsettled_usd
            formatting.say(
                "Apart from that, and from all these: "
                f"{f'up to {money(most)}' if most else 'an unknown sum'} for "
                f"{counted(spent.unsettled_calls, 'call')} without an answer on record."
            )
    if any(p.averaged for p in priced):
        formatting.say(
            "Long inputs cost more with some: calls are taken to be as long as their average."
        )
    if any(p.at_highest for p in priced):
        formatting.say(
            "Some prices depend on the moment, which the ledger does not have: the highest one counts."
        )
    return 0
