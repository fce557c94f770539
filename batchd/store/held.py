"""Tasks that wait for something that no work of others brings about, and for what nothing does."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from batchd.records import Parking, Scope

#: What is asked of each queued task is asked only where something of that kind is parked:
#: there may be 100,000.
_HELD = """
    SELECT count(*) FROM tasks t JOIN batches b ON b.id = t.batch
    WHERE t.published = 0 AND (t.status = 'parked' OR t.status = 'queued' AND (
        ?1
        OR b.name IN (SELECT value FROM json_each(?2))
        OR ?5 <> '[]' AND t.model IN (SELECT value FROM json_each(?5))
        OR ?3 <> '[]' AND substr(t.model, 1, instr(t.model, '/') - 1) IN (SELECT value FROM json_each(?3))
        OR ?4 <> '[]' AND b.name || '/' || t.name IN (SELECT value FROM json_each(?4))))
"""


def held(db: sqlite3.Connection, parked: Iterable[Parking]) -> int:
    """Return how many tasks are parked, or are queued for what is parked as a whole:
    a provider, a model, a batch, everything.
    """
    names: dict[Scope, list[str]] = {scope: [] for scope in Scope}
    for each in parked:
        names[each.scope].append(each.name)
    everything = bool(names[Scope.ALL] or names[Scope.DAY])
    lists = (json.dumps(names[s]) for s in (Scope.BATCH, Scope.PROVIDER, Scope.TASK, Scope.MODEL))
    return int(db.execute(_HELD, (everything, *lists)).fetchone()[0])


def idle(db: sqlite3.Connection, parked: Iterable[Parking]) -> frozenset[str]:
    """Return which providers and models are out of order, while no task
    that has not ended needs them, nor is parked for any cause.

    None that the next task would not try: one that somebody paused, or whose provider waits.
    """
    asked = [each for each in parked if each.scope.asked]
    waiting = {each.name for each in asked}
    paused = {each.name for each in asked if not each.cause.reason}
    names = {
        name
        for name in waiting - paused
        if "/" not in name or name.partition("/")[0] not in waiting
    }
    if not names:
        return frozenset()
    if db.execute("SELECT 1 FROM tasks WHERE published = 0 AND status = 'parked'").fetchone():
        return frozenset()  # it may be its judge that is
    open_tasks = "SELECT DISTINCT model FROM tasks WHERE published = 0 AND finished_at IS NULL"
    models = {model for (model,) in db.execute(open_tasks)}
    return frozenset(names - models - {model.partition("/")[0] for model in models})
