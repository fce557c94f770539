"""``batchd cost``: what was spent, and what the same or other tokens cost elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from batchd import config
from batchd.cli import common
from batchd.errors import UsageError
from batchd.observe.words import money
from batchd.pricing import Prices
from batchd.records import Usage
from batchd.store.reader import Reader
from batchd.store.rows import SpendRow

_SPLITS = ("batch", "day", "model", "provider", "purpose")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("batch", nargs="?", metavar="BATCH", help="of one batch only")
    parser.add_argument(
        "--by", choices=_SPLITS, help="one line for each (batch; of one batch: model)"
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="MODEL",
        help="what the same tokens cost with these models (else those of [cost] compare)",
    )
    parser.add_argument("--tokens", metavar="IN,OUT", help="price these counts, nothing recorded")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print money."""
    if args.tokens:
        settings = config.load(args.config)
        models = args.compare or (settings.agent.model, *settings.cost.compare)
        return _show_compared(_compare(settings, models, [_counts(args.tokens)]), args.json)
    with Reader(common.store_path(common.state_directory(args.config))) as reader:
        if args.batch:
            reader.batch(args.batch)  # raises where there is none: no money is not the same
        if args.compare is not None:
            settings = config.load(args.config)
            models = args.compare or settings.cost.compare
            used = [_usage(r) for r in reader.spend((), batch=args.batch)]
            return _show_compared(_compare(settings, models, used), args.json)
        by = args.by or ("model" if args.batch else "batch")
        return _show_spent(reader, by, args.batch, as_json=args.json)


def _counts(text: str) -> Usage:
    try:
        given, made = (int(n.replace("_", "")) for n in text.split(","))
    except ValueError:
        given = made = -1
    if given < 0 or made < 0:
        raise UsageError("--tokens wants two counts, as in --tokens 120000,8000")
    return Usage(calls=1, input_tokens=given, output_tokens=made)


def _usage(row: SpendRow) -> Usage:
    return Usage(
        calls=row.calls,
        input_tokens=row.input_tokens,
        cached_input_tokens=row.cached_input_tokens,
        output_tokens=row.output_tokens,
        reasoning_tokens=row.reasoning_tokens,
    )


def _compare(
    settings: config.Config, models: Sequence[str], used: Sequence[Usage]
) -> list[dict[str, Any]]:
    """Return what ``used`` costs with each model, cheapest first, unknown prices last."""
    prices, usage = Prices(settings.models), sum(used, Usage())
    found: list[dict[str, Any]] = []
    for model in models:
        provider = settings.providers.get(model.partition("/")[0])
        price = prices.price(model, provider.base_url if provider else "")
        total = price.cost(usage).total if price else None
        found.append({"model": model, "total": total, "source": price.source if price else None})
    return sorted(found, key=lambda c: (c["total"] is None, c["total"] or 0.0))


def _show_compared(found: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        common.print_json(found)
    else:
        rows = [(c["model"], money(c["total"]), c["source"] or "") for c in found]
        print(*common.table(("MODEL", "COST", "PRICES"), rows, right=("COST",)), sep="\n")
    return 0


def _show_spent(reader: Reader, by: Any, batch: str | None, *, as_json: bool) -> int:
    if batch:
        reader.batch(batch)  # a name that nobody knows is an error, not an empty table
    # A model's own name says little without its provider's.
    rows = reader.spend(("provider", "model") if by == "model" else (by,), batch=batch)
    total = reader.spend((), batch=batch)
    if as_json:
        fields = [{**dataclasses.asdict(r), "cost_usd": r.cost_usd} for r in rows]
        common.print_json([{k: v for k, v in f.items() if v != ""} for f in fields])
        return 0
    cells = [
        (
            name,
            f"{r.calls:,}",
            f"{r.input_tokens:,}",
            f"{r.cached_input_tokens:,}",
            f"{r.output_tokens:,}",
            money(r.cost_usd),
            money(r.unsettled_usd) if r.unsettled_calls else "",
        )
        for name, r in [*((_name(r, by), r) for r in rows), *(("total", t) for t in total)]
    ]
    heads = (by.upper(), "CALLS", "INPUT", "CACHED", "OUTPUT", "COST", "UNSETTLED")
    print(*common.table(heads, cells, right=heads[1:], flexible=heads[0]), sep="\n")
    return 0


def _name(row: SpendRow, by: str) -> str:
    return f"{row.provider}/{row.model}" if by == "model" else str(getattr(row, by))
