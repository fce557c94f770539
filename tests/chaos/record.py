"""What a gust has done, for the audit."""

from __future__ import annotations

from dataclasses import dataclass, field

from files import File
from orders import Order


@dataclass
class Dropped:
    """A file that was dropped."""

    file: File
    #: Whether an order was given that may end its tasks.
    cancelled: bool = False


@dataclass
class Record:
    """What a gust has done."""

    dropped: list[Dropped] = field(default_factory=list)
    #: Orders to run a batch again, by the batch.
    reruns: list[tuple[str, Order]] = field(default_factory=list)
    #: Days that had a budget all along: the number of days since the epoch.
    poor_days: set[int] = field(default_factory=set)
    #: Whether a provider was not configured for a while: files that name it are then refused.
    without_provider: bool = False
    #: How often workers were killed apart from their daemon.
    killed_workers: int = 0
