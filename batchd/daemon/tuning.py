"""What each room needs of the configuration, in its own terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from batchd import wire
from batchd.config import Config
from batchd.daemon import scratch
from batchd.errors import NotPossibleError
from batchd.pool.supervisor import PoolShape
from batchd.records import Endpoint

#: An idle worker has nothing else to do: more often would only cost processor time.
_HEARTBEAT_S = 5.0


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
    pool, judge = config.pool, config.evaluation.judge_model
    return PoolShape(
        processes=pool.processes if pool.engine == "local" else 0,
        heartbeat_timeout_s=pool.heartbeat_timeout_s,
        max_tasks_per_process=pool.max_tasks_per_process,
        max_rss_bytes=pool.max_rss_mb << 20,
        judge=judge.partition("/")[0] if config.evaluation.by == "judge" else "",
        machines=pool.machines,
        folders=tuple(_shared(config)),
    )


def _shared(config: Config) -> Iterator[str]:
    """Yield the folders that the machines of a pool share."""
    paths, workspace = config.paths, config.workspace
    yield paths.outbox
    yield str(scratch.above(config))
    if workspace.repos:
        yield workspace.mirrors
    yield workspace.root
    yield from workspace.allow


def settings(config: Config, known: Mapping[str, Endpoint]) -> wire.WorkerSettings:
    """Return what workers need of the configuration."""
    return wire.WorkerSettings(
        endpoints=known,
        sandbox=config.sandbox_policy(),
        agents_per_process=config.pool.agents_per_process,
        heartbeat_s=min(_HEARTBEAT_S, config.pool.heartbeat_timeout_s / 4),
        each_step=config.log.level == "debug",
        keys={
            name: wire.KeySource(
                config.providers[name].api_key_env, config.providers[name].api_key_file
            )
            for name, endpoint in known.items()
            # A key in another place, as in a header, stands in the configuration: it does not
            # travel, and a machine is not asked for it.
            if not any(replace(endpoint, api_key="").secrets())
        },
    )
