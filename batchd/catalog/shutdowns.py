"""The models that their providers shut down: when, and what to take in their place.

A table of ours, ``data/shutdowns.json``, since no package has the dates. A provider's own list,
where it has them, counts before it: OpenAI's ``shutdown_date``, Anthropic's ``lifecycle`` and
``retires_at``.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from urllib.parse import urlsplit

import msgspec

from batchd import decoders
from batchd.catalog.listing import ModelListing

#: A shutdown that is as near as this is reported, in days.
SOON_DAYS = 60
#: The date in the name of a snapshot: ``gpt-5-mini-2025-08-07``, ``claude-sonnet-4-5-20250929``.
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|20\d{6}|latest)$")

_SOURCE = "says its provider's list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """The end of a model, as far as it is known."""

    #: ``provider/model``, as the configuration names it.
    model: str
    #: The first day without it, in UTC; None: it is gone, since an unknown day.
    on: date | None
    #: ``provider/model`` to take in its place: today's of that size; empty: none is known.
    successor: str = ""
    #: Who says so.
    source: str = ""

    def gone(self, today: date) -> bool:
        """Whether that day has come."""
        return self.on is None or self.on <= today

    def due(self, today: date) -> bool:
        """Whether people are to be warned: it is gone, or will be soon."""
        return self.on is None or (self.on - today).days <= SOON_DAYS

    def words(self, today: date) -> str:
        """Return it for people: when, who says so."""
        said = f" ({self.source})" if self.source else ""
        if self.on is None:
            return f"{self.model} is retired{said}"
        if self.gone(today):
            return f"{self.model} was shut down on {self.on}{said}"
        days = (self.on - today).days
        return f"{self.model} is shut down on {self.on}, in {days} day{'s' * (days != 1)}{said}"

    @property
    def fix(self) -> str:
        """What to do about it."""
        return f"take {self.successor}" if self.successor else "take another model"


class _House(msgspec.Struct, frozen=True):
    """A company that sells models: where it is reached, and what it shuts down."""

    host: str
    #: Where the dates come from; read on 2026-11-28.
    page: str
    #: By day: the models, each with what to take in its place.
    ends: Mapping[date, Mapping[str, str]]


@functools.cache
def _houses() -> Mapping[str, _House]:
    table = importlib.resources.files("batchd") / "data" / "shutdowns.json"
    return decoders.decode(table.read_bytes(), dict[str, _House])


def house(provider: str, base_url: str = "") -> str:
    """Return whose models a provider serves; empty: unknown. An address says more than a name."""
    if not base_url:
        return provider if provider in _houses() else ""
    host = urlsplit(base_url).hostname or ""
    found = (n for n, h in _houses().items() if host == h.host or host.endswith(f".{h.host}"))
    return next(found, "")


def shutdown(model: str, base_url: str = "") -> Shutdown | None:
    """Return what the table says of a ``provider/model``; None: nothing.

    ``base_url``: where its provider is reached, if it is:
    a gateway of one's own may have the model yet.
    """
    provider, _, name = model.partition("/")
    seller = house(provider, base_url)
    # A snapshot may end by itself; else it ends with the model that it is one of.
    for each in dict.fromkeys((name, _SNAPSHOT.sub("", name))):
        for found in _named(seller, each):
            successor = found.successor and f"{provider}/{found.successor}"
            return replace(found, model=model, successor=successor)
    return None


def _named(seller: str, name: str) -> Iterator[Shutdown]:
    known = _houses().get(seller)
    for day, models in known.ends.items() if known else ():
        if known and name in models:
            yield Shutdown(model=name, on=day, successor=models[name], source=known.page)


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


def end(model: str, base_url: str = "", listing: ModelListing | None = None) -> Shutdown | None:
    """Return what is known of the end of a ``provider/model``; None: none is announced.

    ``base_url``: where its provider is reached. ``listing``: what that says it has;
    None: it was not asked, or has none.
    """
    known = shutdown(model, base_url)
    listed = listing.find(model.partition("/")[2]) if listing else None
    if listed is None:
        return known
    if listed.ends is None and not listed.retired:
        # It is there, whatever the table says of the past.
        return known if known and not known.gone(today()) else None
    over = listed.retired and not (listed.ends and listed.ends <= today())
    day = None if over else listed.ends
    return replace(known or Shutdown(model=model, on=day), on=day, source=_SOURCE)
