"""What tokens cost with other models: those on record, or counts given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchd.cli.display import tables
from batchd.config import Config
from batchd.errors import UsageError
from batchd.log import escape
from batchd.pricing import Prices
from batchd.records import Cost, Price, Usage
from batchd.store.queries import Split
from batchd.store.reader import StoreReader
from batchd.store.rows import SpendRow
from batchd.words import at_least, counted, money

#: More tokens than any account has, and few enough to be multiplied.
_MAX_TOKENS = 10**15
#: Parts of the ledger as small as it has them: the average call of each says more than that of all.
_PARTS: tuple[Split, ...] = ("day", "batch", "provider", "model", "purpose")


@dataclass(frozen=True, slots=True)
class Repriced:
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
        return tables.table(heads, rows, right=("COST", "RATIO"), flexible="MODEL")

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


def given(settings: Config, models: Sequence[str] | None, text: str) -> Repriced:
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
    return Repriced(_priced(settings, names, [usage]))


def recorded(
    settings: Config, models: Sequence[str] | None, reader: StoreReader, asked: dict[str, Any]
) -> Repriced:
    """Return what the tokens on record cost with models, and what they really cost."""
    used = [Usage.of(row) for row in reader.spend(_PARTS, **asked)]
    total = reader.spend((), **asked)
    return Repriced(
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
