"""What was spent, as the page of cost is given it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from batchd.store.reader import StoreReader
from batchd.store.rows import SpendRow
from batchd.web import page_data
from batchd.web.excerpts import Excerpts
from batchd.words import NO_TAG

#: Lines that are shown.
_MAX_ROWS = 100
#: No ledger goes back further, and a calendar not much.
_MOST_DAYS = 36_500
#: What money can be split by, and by which keys of the ledger.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "day": ("day",),
    "batch": ("batch",),
    "provider": ("provider",),
    "model": ("provider", "model"),
    "purpose": ("purpose",),
    "tag": ("tag",),
}


def spent(reader: StoreReader, by: str, days: int, prompts: Excerpts) -> Mapping[str, Any]:
    """Return what was spent within so many days, split up; 0: ever. Raises ``StoreError``."""
    back = dt.timedelta(days=min(days, _MOST_DAYS) - 1)
    since = dt.datetime.now(dt.UTC).date() - back if days else None
    split: Any = SPLITS[by]
    rows = reader.spend(split, since=since)
    lines = [page_data.spent(row, _name(row, split)) for row in rows]
    # Days as they went by, the newest first; of all else the dearest.
    lines.sort(key=lambda x: x["name"] if by == "day" else (x["usd"], x["input"]), reverse=True)
    daily = rows if by == "day" else reader.spend(("day",), since=since)
    each_day = sorted((page_data.spent(row, row.day) for row in daily), key=lambda x: x["name"])
    today = str(dt.datetime.now(dt.UTC).date())
    total = [page_data.spent(row, "total") for row in reader.spend((), since=since)]
    return {
        "by": by,
        "lines": [
            {**line, "prompt": prompts.line(reader, reader.batch(line["name"]))}
            if by == "batch"
            else line
            for line in lines[:_MAX_ROWS]
        ],
        "more": max(0, len(lines) - _MAX_ROWS),
        "total": total[:1],
        # What a chart shows: each day with a call, and from when to when.
        "days": each_day,
        "first": str(since) if since else each_day[0]["name"] if each_day else today,
        "last": max(today, each_day[-1]["name"]) if each_day else today,
    }


def _name(row: SpendRow, split: Sequence[str]) -> str:
    """Return what a line of the ledger is shown under; tasks without a tag have none."""
    return "/".join(NO_TAG if (part := getattr(row, name)) is None else part for name in split)
