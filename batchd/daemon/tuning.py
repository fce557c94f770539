"""The configuration in force, and what each room needs of it, in its own terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchd import wire
from batchd.config import Config
from batchd.errors import NotPossibleError
from batchd.pool.shape import PoolShape
from batchd.pricing import Prices
from batchd.records import Endpoint, Has

#: An idle worker has nothing else to do: more often would only cost processor time.
_HEARTBEAT_S = 5.0
#: What else is in such a message, in bytes.
_BESIDE = 1 << 20


@dataclass(slots=True, eq=False)
class CurrentConfig:
    """The one place where the daemon's parts look the configuration up;
    only the ``Reloader`` changes it.
    """

    config: Config
    prices: Prices


def endpoints(config: Config) -> tuple[dict[str, Endpoint], dict[str, str]]:
    """Return where providers are reached, and why others cannot be."""
    known: dict[str, Endpoint] = {}
    missing: dict[str, str] = {}
    for name in config.providers:
        try:
            known[name] = config.endpoint(name)
        except NotPossibleError as error:
            missing[name] = str(error)
    return known, missing


def shape(config: Config) -> PoolShape:
    """Return how large the pool is."""
    pool = config.pool
    return PoolShape(
        processes=pool.processes if pool.engine == "local" else 0,
        heartbeat_timeout_s=pool.heartbeat_timeout_s,
        max_tasks_per_process=pool.max_tasks_per_process,
        max_rss_bytes=pool.max_rss_mb << 20,
        # A patch comes as one message, in base 64.
        max_frame=max(wire.MAX_ELSEWHERE, config.workspace.max_patch_bytes * 4 // 3 + _BESIDE),
        has=Has(pool.gpus, pool.labels),
    )


def settings(config: Config, known: Mapping[str, Endpoint]) -> wire.WorkerSettings:
    """Return what workers need of the configuration."""
    return wire.WorkerSettings(
        endpoints=known,
        sandbox=config.sandbox_policy(),
        agents_per_process=config.pool.agents_per_process,
        heartbeat_s=min(_HEARTBEAT_S, config.pool.heartbeat_timeout_s / 4),
        each_step=config.log.level == "debug",
        travels=not config.workspace.shared,
    )
