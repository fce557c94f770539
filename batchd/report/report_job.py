"""What the process that makes reports is asked, and what it answers: a line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchd.records import Batch, Price
from batchd.report.building import Style

if TYPE_CHECKING:
    from batchd.config import Config

#: The report's name in its batch's folder.
NAME = "report.html"
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """One report, on one batch."""

    #: The path of the store.
    store: str
    batch: str
    #: The path of the report.
    target: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOutcome:
    """What became of it."""

    #: Its size.
    bytes: int = 0
    #: Why there is none; empty: there is one.
    error: str = ""


def job(batch: Batch, config: Config, style: Style) -> ReportJob:
    """Return the job to report on a batch in its own folder."""
    return ReportJob(
        store=f"{config.paths.state}/batchd.db",
        batch=batch.name,
        target=f"{batch.folder}/{NAME}",
        style=style,
    )


def style(config: Config, *, orders: bool = True) -> Style:
    """Return how reports are made under a configuration."""
    return Style(
        quota=int(config.report.transcripts_mb * _MB),
        compare=tuple(_priced(config)),
        orders=orders,
    )


def _priced(config: Config) -> list[tuple[str, Price | None]]:
    from batchd.pricing import Prices  # who does the jobs starts without

    prices = Prices(config.models)
    known = ((name, config.providers.get(name.partition("/")[0])) for name in config.cost.compare)
    return [(name, prices.price(name, p.base_url if p else "")) for name, p in known]
