"""``batchd cost``: what was spent, split every way;
what the same tokens cost elsewhere is in ``repricing``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from batchd import config
from batchd.cli.display import formatting
from batchd.config import Config
from batchd.errors import UsageError
from batchd.log import escape
from batchd.pricing import Prices
from batchd.records import Cost, Price, Usage
from batchd.store.queries import SPLITS, Split
from batchd.store.reader import StoreReader
from batchd.store.rows import SpendRow
from batchd.words import NO_TAG, at_least, counted, from_cache, money

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
    parser.add_argument("--batch", dest="of_batch", metavar="BATCH", help="the same as BATCH")
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
        return _print(_given(config.load(args.config), args.compare, args.tokens), args)
    if args.by and args.compare is not None:
        raise UsageError("--compare prices everything together: leave --by out")
    asked = _asked(args)
    with StoreReader(formatting.store_path(formatting.state_directory(args.config))) as reader:
        if asked["batch"]:
            reader.batch(asked["batch"])  # raises where there is none: no money is not the same
        if args.compare is not None:
            settings = config.load(args.config)
            return _print(_recorded(settings, args.compare, reader, asked), args)
        by: tuple[Split, ...] = args.by or (("model",) if asked["batch"] else ("batch",))
        return _print(_Spent(reader, by, asked), args)


class _Shown(Protocol):
    """A table, for people, programs and spreadsheets."""

    def columns(self) -> tuple[str, ...]: ...
    def records(self) -> list[dict[str, Any]]: ...
    def lines(self) -> list[str]: ...
    def notes(self) -> list[str]: ...


def _print(shown: _Shown, args: argparse.Namespace) -> int:
    """Print a table with its notes, or the same for programs."""
    if args.json:
        formatting.print_json(shown.records())
    elif args.csv:
        formatting.print_csv(shown.columns(), shown.records())
    else:
        print(*shown.lines(), sep="\n")
        formatting.say(*shown.notes())
    return 0


class _Spent:
    """The ledger, split."""

    def __init__(self, reader: StoreReader, by: tuple[Split, ...], asked: dict[str, Any]) -> None:
        # A model's own name says little without its provider's.
        self._by = by
        keys = [("provider", name) if name == "model" else (name,) for name in by]
        self._keys = cast("tuple[Split, ...]", tuple(dict.fromkeys(itertools.chain(*keys))))
        self._rows = reader.spend(self._keys, **asked)
        self._total = reader.spend((), **asked)

    def columns(self) -> tuple[str, ...]:
        return *self._keys, *COLUMNS

    def records(self) -> list[dict[str, Any]]:
        return [{name: getattr(row, name) for name in self.columns()} for row in self._rows]

    def lines(self) -> list[str]:
        names = [*((self._names(r), r) for r in self._rows)]
        names += [(("total", *[""] * (len(self._by) - 1)), t) for t in self._total]
        cells = [
            (
                *name,
                f"{r.calls:,}",
                f"{r.input_tokens:,}",
                f"{r.cached_input_tokens:,}",
                f"{r.output_tokens:,}",
                at_least(r.cost_usd, r.known_usd),
                # At no known price they come to nothing, and are counted.
                (money(r.unsettled_usd) if r.unsettled_usd else counted(r.unsettled_calls, "call"))
                if r.unsettled_calls
                else "",
            )
            for name, r in names
        ]
        splits = [name.upper() for name in self._by]
        heads = (*splits, "CALLS", "INPUT", "CACHED", "OUTPUT", "COST", "UNSETTLED")
        if not any(r.unsettled_calls for _, r in names):
            heads, cells = heads[:-1], [cell[:-1] for cell in cells]  # the room is the names'
        # The one with the longest names gives way.
        widest = max(range(len(splits)), key=lambda i: max((len(c[i]) for c in cells), default=0))
        return formatting.table(heads, cells, right=heads[len(splits) :], flexible=heads[widest])

    def notes(self) -> list[str]:
        if not self._total:
            return ["Nothing is on record for that."]
        (total,) = self._total
        notes = []
        if "tag" in self._by and sum(r.calls for r in self._rows) > total.calls:
            notes.append("A task with several tags counts under each: the total is not their sum.")
        if total.calls:
            notes.append(f"Prompt cache: {from_cache(total.cache_share, total.cache_saved)}.")
        if total.unpriced_calls:
            notes.append(
                f"No price is known for {total.unpriced_calls:,} of {total.calls:,} calls: "
                'set input_usd_per_mtok and output_usd_per_mtok in [models."PROVIDER/MODEL"] for future calls.'
            )
        return notes

    def _names(self, row: SpendRow) -> tuple[str, ...]:
        names: list[str] = []
        for name in self._by:
            value = f"{row.provider}/{row.model}" if name == "model" else getattr(row, name)
            names.append(NO_TAG if value is None else value)
        return tuple(names)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what of the ledger is asked for."""
    if args.batch and args.of_batch not in {None, args.batch}:
        raise UsageError(f"two batches: {escape(args.batch)} and {escape(args.of_batch)}; name one")
    if args.since and args.until and args.since > args.until:
        raise UsageError(f"--since {args.since} is after --until {args.until}")
    return {
        "batch": args.batch or args.of_batch,
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


#: More tokens than any account has, and few enough to be multiplied.
_MAX_TOKENS = 10**15
#: Parts of the ledger as small as it has them: the average call of each says more than that of all.
_PARTS: tuple[Split, ...] = ("day", "batch", "provider", "model", "purpose")


@dataclass(frozen=True, slots=True)
class _Repriced:
    """The same tokens with several models, cheapest first, unknown prices last."""

    models: tuple[tuple[str, Price | None, float | None], ...]
    #: What the ledger says of the tokens; None: they were given by hand, or there are none.
    spent: SpendRow | None = None

    def columns(self) -> tuple[str, ...]:
        """Return the names of what a row for programs holds."""
        return ("model", "total", "source", "ratio", "spent", "unsettled", "averaged", "dearest")

    def records(self) -> list[dict[str, Any]]:
        """Return the rows for programs."""
        spent = self.spent
        return [
            {
                "model": model,
                "total": total,
                "source": price.source if price else None,
                "ratio": self._ratio(total),
                "spent": spent.cost_usd if spent else None,
                "unsettled": spent.unsettled_usd if spent else None,
                "averaged": price is not None and len(price.rates) > 1,
                "dearest": price is not None and bool(price.hours),
            }
            for model, price, total in self.models
        ]

    def lines(self) -> list[str]:
        """Return the table."""
        rows = [
            (
                model,
                money(total),
                f"{ratio:.2f}" if (ratio := self._ratio(total)) is not None else "",
                f"{price.source}{' *' if len(price.rates) > 1 else ''}{' †' if price.hours else ''}"
                if price
                else "",
            )
            for model, price, total in self.models
        ]
        heads = ("MODEL", "COST", "RATIO", "PRICES")
        return formatting.table(heads, rows, right=("COST", "RATIO"), flexible="MODEL")

    def notes(self) -> list[str]:
        """Return what must be known beside the table."""
        notes = []
        if spent := self.spent:
            known = f"Really spent: {at_least(spent.cost_usd, spent.known_usd)}"
            if spent.unpriced_calls:
                known += (
                    f", as no price is known for {spent.unpriced_calls:,} of {spent.calls:,} calls"
                )
            notes.append(f"{known}.")
            if spent.unsettled_calls:
                most = spent.unsettled_usd
                notes.append(
                    "Apart from that, and from all these: "
                    f"{f'up to {money(most)}' if most else 'an unknown sum'} for "
                    f"{counted(spent.unsettled_calls, 'call')} without an answer on record."
                )
        if any(price and len(price.rates) > 1 for _, price, _ in self.models):
            notes.append(
                "* Long inputs cost more there: calls are taken to be as long as their average."
            )
        if any(price and price.hours for _, price, _ in self.models):
            notes.append(
                "† The price depends on the moment, which the ledger does not have: its dearest counts."
            )
        return notes

    def _ratio(self, total: float | None) -> float | None:
        """Return how many times what was really spent ``total`` is;
        None where either is not known, or it was nothing.
        """
        spent = self.spent.cost_usd if self.spent else None
        return total / spent if spent and total is not None else None


def _given(settings: Config, models: Sequence[str] | None, text: str) -> _Repriced:
    """Return what ``IN,OUT`` tokens, as one call, cost with models. Raises ``UsageError``."""
    try:
        taken, made = (int(n.replace("_", "")) for n in text.split(","))
    except ValueError:
        taken = made = -1
    if not (0 <= taken <= _MAX_TOKENS and 0 <= made <= _MAX_TOKENS):
        raise UsageError(
            f"--tokens needs two counts, as in --tokens 120000,8000, not {escape(text[:40])}"
        )
    usage = Usage(calls=1, input_tokens=taken, output_tokens=made)
    names = models or (settings.agent.model, *settings.cost.compare)
    return _Repriced(_priced(settings, names, [usage]))


def _recorded(
    settings: Config, models: Sequence[str] | None, reader: StoreReader, asked: dict[str, Any]
) -> _Repriced:
    """Return what the tokens on record cost with models, and what they really cost."""
    used = [Usage.of(row) for row in reader.spend(_PARTS, **asked)]
    total = reader.spend((), **asked)
    return _Repriced(
        _priced(settings, models or settings.cost.compare, used), total[0] if total else None
    )


def _priced(
    settings: Config, models: Sequence[str], used: Sequence[Usage]
) -> tuple[tuple[str, Price | None, float | None], ...]:
    prices = Prices(settings.models)
    found: list[tuple[str, Price | None, float | None]] = []
    for model in dict.fromkeys(models):
        provider = settings.providers.get(model.partition("/")[0])
        price = prices.price(model, provider.base_url if provider else "")
        total = sum((price.cost_of_many(u) for u in used), Cost()).total if price else None
        found.append((model, price, total))
    return tuple(sorted(found, key=lambda f: (f[2] is None, f[2] or 0.0)))
