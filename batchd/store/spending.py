"""The ledger as people ask for it: split by some of its keys, of some of its rows."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from batchd.store.fold import TALLY_COLUMNS
from batchd.store.rows import SpendRow

#: What the ledger can be split by.
Split: TypeAlias = Literal["day", "batch", "provider", "model", "purpose", "tag"]
SPLITS: dict[Split, str] = {
    "day": "s.day",
    "batch": "b.name",
    "provider": "s.provider",
    "model": "s.model",
    "purpose": "s.purpose",
    "tag": "g.value",
}
#: Without tags a row is booked under none, once; with several it is counted under each.
_TAGGED = ", json_each(CASE s.tags WHEN '' THEN '[null]' ELSE s.tags END) g"
#: Everything that can be asked for: a list is JSON, and NULL asks for all.
_WHERE = """
    (?1 IS NULL OR b.name IN (SELECT value FROM json_each(?1)))
    AND s.day BETWEEN ?2 AND ?3
    AND (?4 IS NULL OR s.model IN (SELECT value FROM json_each(?4))
        OR s.provider || '/' || s.model IN (SELECT value FROM json_each(?4)))
    AND (?5 IS NULL OR s.provider IN (SELECT value FROM json_each(?5)))
    AND (?6 IS NULL OR s.tags <> '' AND EXISTS (
        SELECT 1 FROM json_each(s.tags) h WHERE h.value IN (SELECT value FROM json_each(?6))))
"""
_EPOCH = dt.date(1970, 1, 1)


def statement(by: tuple[Split, ...]) -> str:
    """Return the query for the ledger split by ``by``; its parameters are ``parameters``."""
    sums = ", ".join(f"sum(s.{column})" for column in TALLY_COLUMNS)
    keys = ", ".join(SPLITS[name] for name in by)
    return (
        f"SELECT {f'{keys}, ' if by else ''}{sums}"  # noqa: S608 (constants)
        f" FROM spend s JOIN batches b ON b.id = s.batch{_TAGGED if 'tag' in by else ''}"
        f" WHERE {_WHERE}"
        f" {f'GROUP BY {keys} ORDER BY {keys}' if by else 'HAVING count(*)'}"
    )


def parameters(
    batches: Sequence[str],
    days: tuple[dt.date | None, dt.date | None],
    models: Sequence[str],
    providers: Sequence[str],
    tags: Sequence[str],
) -> tuple[object, ...]:
    """Return what ``statement`` is asked of: any of the batches,
    models, providers and tags, or of all where none is named.
    """
    first, last = days
    numbers = (_number(first, 0), _number(last, 1 << 31))
    return _list(batches), *numbers, _list(models), _list(providers), _list(tags)


def record(by: tuple[Split, ...], row: tuple[Any, ...]) -> SpendRow:
    """Return the record of a row of ``statement``."""
    values = dict(zip((*by, *TALLY_COLUMNS), row, strict=True))
    if "day" in values:
        values["day"] = (_EPOCH + dt.timedelta(days=values["day"])).isoformat()
    return SpendRow(**values)


def _list(names: Sequence[str]) -> str | None:
    return json.dumps(list(names)) if names else None


def _number(day: dt.date | None, default: int) -> int:
    """Return a day as the ledger counts it."""
    return default if day is None else (day - _EPOCH).days
