"""The configuration in force, as it was last read, and the prices that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.config import Config
from batchd.pricing import Prices


@dataclass(slots=True, eq=False)
class CurrentConfig:
    """The one place where the daemon's parts look the configuration up;
    only the ``Reloader`` changes it.
    """

    config: Config
    prices: Prices
