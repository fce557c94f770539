"""The durable state: batches, tasks, events and money in SQLite.

``Store`` is the daemon's, the only one that writes; ``StoreReader`` is for everybody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchd.store.queries import Split, StoreReader
from batchd.store.rows import (
    BatchRow,
    BatchTask,
    DispatchedTask,
    LearntRefusal,
    PrunableBatch,
    SpendRow,
    SpentMoney,
    StoredWork,
    TaskRow,
)

if TYPE_CHECKING:
    from batchd.store.store import Store

__all__ = [
    "BatchRow",
    "BatchTask",
    "DispatchedTask",
    "LearntRefusal",
    "PrunableBatch",
    "SpendRow",
    "SpentMoney",
    "Split",
    "Store",
    "StoreReader",
    "StoredWork",
    "TaskRow",
]


def __getattr__(name: str) -> Any:
    # `batchd status` only reads: it need not wait for asyncio to load.
    if name == "Store":
        from batchd.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
