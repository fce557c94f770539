"""Gauges, no counts but states: asked of the daemon whenever somebody looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from batchd.daemon.desk import DaemonFigures
from batchd.records import Scope

#: What ``status`` shows of a provider, as a metric.
_PROVIDER = {
    "under_way": ("model_calls_in_flight", "Requests that wait for their answers."),
    "waiting": ("model_calls_waiting", "Requests that wait for their turn."),
    "concurrent": ("model_calls_limit", "How many may be under way at a time."),
    "paused_s": (
        "provider_pause_seconds",
        "How long the provider asks everybody to wait, from now.",
    ),
}
_DAY = {
    "limit_usd": ("day_budget_usd", "The day's budget, in UTC; 0: none."),
    "spent_usd": ("day_spent_usd", "What was spent today; what may have been paid counts."),
    "reserved_usd": ("day_reserved_usd", "Set aside for calls under way."),
}


class StandingCollector(Collector):
    """Gauges, from the daemon's figures; none where it does not answer."""

    def __init__(self, ask: Callable[[], DaemonFigures | None]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield them, all of one moment."""
        now = self._ask()
        if now is None:
            return
        tasks = _gauge("tasks", "Tasks that have not ended.", "status")
        for status in ("queued", "running", "parked"):
            tasks.add_metric([status], getattr(now, status))
        yield tasks
        yield _gauge("batches_open", "Batches whose summary is still to come.", value=now.batches)
        yield _gauge("agents_busy", "Agents at work.", value=now.running)
        yield _gauge("agent_slots", "Agents that can be at work at once.", value=now.slots)
        yield _gauge("workers", "Worker processes.", value=now.workers)
        yield _gauge("workers_resident_memory_bytes", "Their memory.", value=now.workers_rss)
        yield from _nodes(now)
        yield _gauge("draining", "1 while the daemon ends.", value=now.draining)
        yield from _providers(now)
        for key, (name, meaning) in _DAY.items():
            yield _gauge(name, meaning, value=now.day[key])
        troubles = _gauge("troubles", "What the daemon cannot do at this time.", "what")
        for what, count in Counter(now.troubles).items():
            troubles.add_metric([what], count)
        yield troubles


def _nodes(now: DaemonFigures) -> Iterator[GaugeMetricFamily]:
    workers = _gauge("node_workers", "Worker processes on another machine.", "node")
    tasks = _gauge("node_agents_busy", "Agents at work there.", "node")
    for node, count in Counter(node for node, _ in now.nodes).items():
        workers.add_metric([node], count)
        tasks.add_metric([node], sum(busy for name, busy in now.nodes if name == node))
    yield from (workers, tasks)


def _providers(now: DaemonFigures) -> Iterator[GaugeMetricFamily]:
    for key, (name, meaning) in _PROVIDER.items():
        gauge = _gauge(name, meaning, "provider")
        for provider, figures in now.providers.items():
            gauge.add_metric([provider], figures[key])
        yield gauge
    parked = _gauge(
        "provider_parked", "1 while nothing is sent to it, and why.", "provider", "cause"
    )
    for provider, cause in now.parked_providers:
        parked.add_metric([provider, cause.value], 1)
    yield parked
    parkings = _gauge("parkings", "Things that wait as a whole, by what they are.", "scope")
    for scope in Scope:
        parkings.add_metric([scope.value], now.parkings.get(scope, 0))
    yield parkings


def _gauge(name: str, meaning: str, *labels: str, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"batchd_{name}", meaning, labels=labels or None, value=value)
