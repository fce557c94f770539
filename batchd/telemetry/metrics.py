"""Metrics: hears what the daemon does, counts it, and shows the figures by ``metrics_server``.

Counters and histograms have what is bound beforehand, so that an event costs a few additions;
gauges are asked of the daemon whenever somebody looks.
"""

from __future__ import annotations

import asyncio
import collections
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import msgspec
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from batchd import __version__, decoders
from batchd.config.sections import MetricsSection
from batchd.control import DaemonStatus
from batchd.daemon.listeners import Listener, LoopLink, StatusDesk
from batchd.errors import Problem
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    Compacted,
    Event,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    Terms,
    ToolRan,
)
from batchd.log import Action
from batchd.records import (
    Batch,
    FailureKind,
    ModelSetup,
    Price,
    Purpose,
    Ref,
    Scope,
    Task,
    ToolName,
)
from batchd.store.store import Store
from batchd.telemetry.metrics_server import MetricsServer

if TYPE_CHECKING:
    pass

#: Models that are distinguished; task files name them,
#: and a file that makes names up must not fill any memory.
_MODELS = 500
#: Characters of the longest name that stands in a figure: each stands in some fifty.
_MAX_NAME_CHARS = 100
#: What all further ones are called, and those of longer names, and all tools that there are not.
_OTHER = "other"
#: From a cached answer to a thinking model's; from a look at a file to a test suite.
_CALL_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_TOOL_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 120, 600)
_TASK_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)
_CALL = ("provider", "model", "purpose")
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
#: A model may call tools whatever it likes.
_TOOLS = frozenset(get_args(ToolName))


class _Usage(msgspec.Struct):
    unsettled_calls: int


class _Cost(msgspec.Struct):
    unsettled: float | None


class _Timing(msgspec.Struct):
    queued_s: float
    parked_s: float
    run_s: float


class _Result(msgspec.Struct):
    """The fields of a result that are counted; the rest is skipped unread."""

    usage: _Usage
    cost: _Cost
    timing: _Timing


_RESULT: msgspec.json.Decoder[_Result] = decoders.decoder(_Result)


@dataclass(slots=True, eq=False)
class _Active:
    """A task that a worker works on."""

    model: ModelSetup
    judge: ModelSetup
    #: Its latest call: what counts it, and what it costs.
    series: CallSeries | None = None
    price: Price | None = None


class Metrics(Listener):
    """Counts."""

    def __init__(self, config: MetricsSection) -> None:
        self._config = config
        self._counts = Counters()
        self._active: dict[Ref, _Active] = {}
        self._server: MetricsServer | None = None

    def opened(self, desk: StatusDesk, _store: Store) -> None:
        """Begin to serve."""
        line = LoopLink(desk, Action.METRICS_TROUBLE)
        registry = self._counts.registry
        registry.register(StandingCollector(line.standing))
        self._server = MetricsServer(self._config.address, self._config.hosts, registry, line)

    async def close(self) -> None:
        """End the server."""
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    # What the daemon reports

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Count it."""
        self._counts.batches.labels("received").inc()

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Count it."""
        self._counts.batches.labels("rejected").inc()

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Count it."""
        self._counts.batches.labels("finished").inc()

    def worker_died(self, cause: str) -> None:
        """Count it."""
        self._counts.deaths.inc()

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """Remember which models its calls go to."""
        self._active[ref] = _Active(terms.model, terms.judge)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Count what the event records."""
        if active := self._active.get(ref):
            self._count(active, event)
        if isinstance(event, Suspended | TaskFinished):
            self._active.pop(ref, None)

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Count a result."""
        counts, result = self._counts, _RESULT.decode(finished.result)
        status, reason = finished.status.value, finished.reason.value if finished.reason else ""
        counts.tasks.labels(status, reason).inc()
        counts.run_s.labels(status).observe(result.timing.run_s)
        counts.queued_s.observe(result.timing.queued_s)
        counts.parked_s.inc(result.timing.parked_s)
        counts.unsettled_calls.inc(result.usage.unsettled_calls)
        counts.unsettled_usd.inc(result.cost.unsettled or 0.0)

    # What events record

    def _count(self, active: _Active, event: Event) -> None:
        counts, series = self._counts, active.series
        match event:
            case CallStarted():
                setup = active.judge if event.purpose is Purpose.JUDGE else active.model
                active.series, active.price = counts.series(setup, event.purpose), setup.price
                active.series.waited.observe(max(0.0, event.waited_s))
            case CallAnswered():
                if event.answer.removed:
                    counts.removed_items.inc(len(event.answer.removed))
                if series is not None:
                    series.paid(event, active.price)
            case CallFailed() if series is not None:
                series.lost(event.failure.kind)
            case ToolRan():
                tool = event.call.name if event.call.name in _TOOLS else _OTHER
                counts.tools.labels(tool, event.outcome).inc()
                counts.tool_s.labels(tool).observe(event.seconds)
                counts.refused_hosts.inc(len(event.refused))
            case RoundEvaluated():
                verdict = "done" if event.evaluation.done else "not_done"
                counts.evaluations.labels(event.evaluation.by, verdict).inc()
                counts.refused_hosts.inc(len(event.refused))
            case Compacted():
                counts.compactions.inc()
            case Suspended():
                counts.suspensions.labels(event.cause).inc()


@dataclass(slots=True, eq=False)
class CallSeries:
    """The counts of the calls to one model for one purpose."""

    answered: Counter
    failed: Counter
    #: By what went wrong.
    failures: Mapping[FailureKind, Counter]
    unpriced: Counter
    input: Counter
    output: Counter
    cached: Counter
    reasoning: Counter
    usd: Counter
    seconds: Histogram
    waited: Histogram

    def paid(self, event: CallAnswered, price: Price | None) -> None:
        """Count an answer."""
        answer, usage, cost = event.answer, event.answer.usage, event.paid(price)
        self.answered.inc()
        self.seconds.observe(answer.seconds)
        self.input.inc(usage.input_tokens)
        self.output.inc(usage.output_tokens)
        if usage.cached_input_tokens:
            self.cached.inc(usage.cached_input_tokens)
        if usage.reasoning_tokens:
            self.reasoning.inc(usage.reasoning_tokens)
        if cost is None:
            self.unpriced.inc()
        else:
            self.usd.inc(cost.total)

    def lost(self, kind: FailureKind) -> None:
        """Count a request that brought no answer."""
        self.failed.inc()
        self.failures[kind].inc()


class Counters:
    """The counts since the daemon started."""

    def __init__(self) -> None:
        # Of no use to Prometheus, and half as many lines again.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series: dict[tuple[str, Purpose], CallSeries] = {}
        self._models: set[str] = set()
        self._name_calls()
        self._name_tasks()
        meaning = "The version of batchd, and of Python."
        build = Gauge("batchd_build_info", meaning, ("version", "python"), registry=self.registry)
        build.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"batchd_{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(f"batchd_{name}", meaning, labels, registry=self.registry, buckets=buckets)

    def _name_calls(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._calls = counter(
            "model_calls", "Requests to models with an outcome.", (*_CALL, "outcome")
        )
        self._failures = counter(
            "model_failures",
            "Requests that brought no answer, by what went wrong; rate_limited is HTTP 429.",
            ("provider", "model", "kind"),
        )
        self._tokens = counter("tokens", "Tokens, as the provider counts them.", (*_CALL, "kind"))
        self._cached = counter(
            "cached_input_tokens", "Of the input tokens, those read from the prompt cache.", _CALL
        )
        self._reasoning = counter(
            "reasoning_tokens", "Of the output tokens, those spent on reasoning.", _CALL
        )
        self._usd = counter("cost_usd", "What answers cost, in US dollars.", _CALL)
        self._unpriced = counter("unpriced_calls", "Answers without a known price.", _CALL)
        self._seconds = histogram(
            "model_call_seconds",
            "From a request to the last byte of its answer.",
            ("provider", "model"),
            _CALL_S,
        )
        self._waited = histogram(
            "model_call_wait_seconds",
            "What requests waited for their turn: limits of rate and of calls at a time, backoffs.",
            ("provider",),
            _CALL_S,
        )

    def _name_tasks(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.tasks = counter(
            "tasks_finished", "Tasks with a result, by how they ended.", ("status", "reason")
        )
        self.suspensions = counter(
            "tasks_suspended", "Tasks that gave their slot back: parked or drained.", ("cause",)
        )
        self.unsettled_calls = counter(
            "unsettled_calls", "Of finished tasks, calls that may have been paid without an answer."
        )
        self.unsettled_usd = counter(
            "unsettled_cost_usd", "What these cost at most, in US dollars."
        )
        self.queued_s = histogram(
            "task_queue_seconds", "From a task's arrival to its first start.", (), _TASK_S
        )
        self.run_s = histogram(
            "task_run_seconds", "A task's time at work, by how it ended.", ("status",), _TASK_S
        )
        self.parked_s = counter("task_parked_seconds", "What finished tasks spent parked.")
        self.tools = counter(
            "tool_calls", "Tool calls, by what became of them.", ("tool", "outcome")
        )
        self.tool_s = histogram("tool_seconds", "How long tools ran.", ("tool",), _TOOL_S)
        self.evaluations = counter("evaluations", "Verdicts on rounds of work.", ("by", "verdict"))
        self.compactions = counter("compactions", "Conversations that were shortened to fit.")
        self.refused_hosts = counter("network_refusals", "Hosts that commands might not reach.")
        self.removed_items = counter(
            "items_removed", "Items of earlier answers that providers left out."
        )
        self.batches = counter("batches", "Task files, by what became of them.", ("outcome",))
        self.deaths = counter("worker_deaths", "Workers that ended with tasks, or never came up.")
        # Else the first of each would be no increase.
        for outcome in ("received", "rejected", "finished"):
            self.batches.labels(outcome)
        for cause in ("park", "drain"):
            self.suspensions.labels(cause)

    def series(self, setup: ModelSetup, purpose: Purpose) -> CallSeries:
        """Return what counts the calls to a model."""
        known = self._series.get((setup.name, purpose))
        if known is None:
            if len(self._models) < _MODELS and len(setup.name) <= _MAX_NAME_CHARS:
                self._models.add(setup.name)
            model = setup.model if setup.name in self._models else _OTHER
            call = (setup.provider, model, purpose.value)
            known = CallSeries(
                answered=self._calls.labels(*call, "answered"),
                failed=self._calls.labels(*call, "failed"),
                failures={
                    kind: self._failures.labels(setup.provider, model, kind.value)
                    for kind in FailureKind
                },
                unpriced=self._unpriced.labels(*call),
                input=self._tokens.labels(*call, "input"),
                output=self._tokens.labels(*call, "output"),
                cached=self._cached.labels(*call),
                reasoning=self._reasoning.labels(*call),
                usd=self._usd.labels(*call),
                seconds=self._seconds.labels(setup.provider, model),
                waited=self._waited.labels(setup.provider),
            )
            if setup.name in self._models:
                self._series[setup.name, purpose] = known
        return known


class StandingCollector(Collector):
    """Gauges, from how the daemon stands; none where it does not answer."""

    def __init__(self, ask: Callable[[], DaemonStatus | None]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield them, all of one moment."""
        now = self._ask()
        if now is None:
            return
        tasks = _gauge("tasks", "Tasks that have not ended.", "status")
        tasks.add_metric(["queued"], now.tasks.queued)
        tasks.add_metric(["running"], now.tasks.running)
        tasks.add_metric(["parked"], now.tasks.parked)
        yield tasks
        yield _gauge(
            "batches_open", "Batches whose summary is still to come.", value=now.batches.open
        )
        yield _gauge("agents_busy", "Agents at work.", value=now.tasks.running)
        yield _gauge("agent_slots", "Agents that can be at work at once.", value=now.slots)
        yield _gauge("workers", "Worker processes.", value=len(now.workers))
        memory = sum(worker.rss for worker in now.workers)
        yield _gauge("workers_resident_memory_bytes", "Their memory.", value=memory)
        yield from _nodes(now)
        yield _gauge("draining", "1 while the daemon ends.", value=now.draining)
        yield from _providers(now)
        day = msgspec.structs.asdict(now.day) if now.day else {}
        for key, (name, meaning) in _DAY.items():
            yield _gauge(name, meaning, value=day[key])
        troubles = _gauge("troubles", "What the daemon cannot do at this time.", "what")
        for what, count in collections.Counter(each.what for each in now.troubles).items():
            troubles.add_metric([what], count)
        yield troubles


def _nodes(now: DaemonStatus) -> Iterator[GaugeMetricFamily]:
    workers = _gauge("node_workers", "Worker processes on another machine.", "node")
    tasks = _gauge("node_agents_busy", "Agents at work there.", "node")
    for node, count in collections.Counter(w.node for w in now.workers if w.node).items():
        workers.add_metric([node], count)
        tasks.add_metric([node], sum(w.tasks for w in now.workers if w.node == node))
    yield from (workers, tasks)


def _providers(now: DaemonStatus) -> Iterator[GaugeMetricFamily]:
    for key, (name, meaning) in _PROVIDER.items():
        gauge = _gauge(name, meaning, "provider")
        for provider, figures in now.providers.items():
            gauge.add_metric([provider], msgspec.structs.asdict(figures)[key])
        yield gauge
    parked = _gauge(
        "provider_parked", "1 while nothing is sent to it, and why.", "provider", "cause"
    )
    for parking in now.parked:
        if parking.scope == Scope.PROVIDER:
            parked.add_metric([parking.name, parking.cause], 1)
    yield parked
    parkings = _gauge("parkings", "Things that wait as a whole, by what they are.", "scope")
    counts = collections.Counter(parking.scope for parking in now.parked)
    for scope in Scope:
        parkings.add_metric([scope.value], counts[scope])
    yield parkings


def _gauge(name: str, meaning: str, *labels: str, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"batchd_{name}", meaning, labels=labels or None, value=value)
