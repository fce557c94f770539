"""The configuration in force."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.config import Config


@dataclass(slots=True, eq=False)
class CurrentConfig:
    """The one place where the daemon's parts look the configuration up;
    only the ``Reloader`` changes it.
    """

    config: Config
