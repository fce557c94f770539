"""When a model ends: by its provider's own list first, by the table else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

from batchd.catalog.listing import Listing
from batchd.catalog.shutdowns import Shutdown, shutdown

_SOURCE = "says its provider's list"


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


def end(model: str, base_url: str = "", listing: Listing | None = None) -> Shutdown | None:
    """Return what is known of the end of a ``provider/model``; None: none is announced.

    ``base_url``: where its provider is reached. ``listing``: what that says it has; None: it was not asked, or has none.
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
