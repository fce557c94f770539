"""The size of the pool."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.config.sections import MachineSection


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """The size of the pool, and when a worker is replaced: ``[pool]`` of the configuration."""

    processes: int = 4
    #: A worker silent for longer is killed.
    heartbeat_timeout_s: float = 30.0
    #: A worker is replaced after so many tasks; 0: never.
    max_tasks_per_process: int = 0
    #: A worker is replaced when its resident memory passes this; 0: never.
    max_rss_bytes: int = 0
    #: The provider that judges tasks of any model; empty: none does.
    judge: str = ""
    #: The machines that workers are kept on beside those here, and the folders that all share.
    machines: tuple[MachineSection, ...] = ()
    folders: tuple[str, ...] = ()
