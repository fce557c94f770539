"""Metrics: hears what the daemon does, counts it, and shows the figures by ``metrics_server``.

Counters and histograms begin with the daemon; gauges are asked of it whenever somebody looks.
"""

from __future__ import annotations

import asyncio
import collections
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, get_args

import msgspec
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from batchd import decoders
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
from batchd.formats import ResultV1
from batchd.log import Action
from batchd.records import Batch, FailureKind, ModelSetup, Purpose, Ref, Scope, Task, ToolName
from batchd.store.store import Store
from batchd.telemetry.metrics_server import MetricsServer
from batchd.version import __version__

#: Models that are distinguished; task files name them,
#: and a file that makes names up must not fill any memory.
_MODELS = 500
#: Characters of the longest name that stands in a figure: each stands in some fifty.
_MAX_NAME_CHARS = 100
#: What all further ones are called, and those of longer names, and all tools that there are not.
_OTHER = "other"
_MODEL, _CALL = ("provider", "model"), ("provider", "model", "purpose")
#: Counters: their meanings and labels.
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "model_calls": ("Requests to models with an outcome.", (*_CALL, "outcome")),
    "model_failures": (
        "Requests that brought no answer, by what went wrong; rate_limited is HTTP 429.",
        (*_MODEL, "kind"),
    ),
    "tokens": ("Tokens, as the provider counts them.", (*_CALL, "kind")),
    "cached_input_tokens": ("Of the input tokens, those read from the prompt cache.", _CALL),
    "reasoning_tokens": ("Of the output tokens, those spent on reasoning.", _CALL),
    "cost_usd": ("What answers cost, in US dollars.", _CALL),
    "unpriced_calls": ("Answers without a known price.", _CALL),
    "tasks_finished": ("Tasks with a result, by how they ended.", ("status", "reason")),
    "tasks_suspended": ("Tasks that gave their slot back: parked or drained.", ("cause",)),
    "unsettled_calls": ("Of finished tasks, calls that may have been paid without an answer.", ()),
    "unsettled_cost_usd": ("What these cost at most, in US dollars.", ()),
    "task_parked_seconds": ("What finished tasks spent parked.", ()),
    "tool_calls": ("Tool calls, by what became of them.", ("tool", "outcome")),
    "evaluations": ("Verdicts on rounds of work.", ("by", "verdict")),
    "compactions": ("Conversations that were shortened to fit.", ()),
    "network_refusals": ("Hosts that commands might not reach.", ()),
    "items_removed": ("Items of earlier answers that providers left out.", ()),
    "batches": ("Task files, by what became of them.", ("outcome",)),
    "worker_deaths": ("Workers that ended with tasks, or never came up.", ()),
}
#: From a cached answer to a thinking model's; from a look at a file to a test suite.
_CALL_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_TOOL_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 120, 600)
_TASK_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)
#: Histograms: their meanings, labels and buckets.
_HISTOGRAMS: Mapping[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "model_call_seconds": ("From a request to the last byte of its answer.", _MODEL, _CALL_S),
    "model_call_wait_seconds": (
        "What requests waited for their turn: limits of rate and of calls at a time, backoffs.",
        ("provider",),
        _CALL_S,
    ),
    "task_queue_seconds": ("From a task's arrival to its first start.", (), _TASK_S),
    "task_run_seconds": ("A task's time at work, by how it ended.", ("status",), _TASK_S),
    "tool_seconds": ("How long tools ran.", ("tool",), _TOOL_S),
}
#: A model may call tools whatever it likes.
_TOOLS = frozenset(get_args(ToolName))
#: A gauge of the moment: its name, meaning and labels, and its samples by their labels' values.
_Gauge: TypeAlias = tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], float]]]


@dataclass(slots=True, eq=False)
class _Active:
    """A task that a worker works on."""

    terms: Terms
    #: The latest request.
    call: CallStarted | None = None


class Metrics(Listener, Collector):
    """Counts what the daemon reports, and collects gauges from how it stands."""

    def __init__(self, config: MetricsSection) -> None:
        self._config = config
        self._active: dict[Ref, _Active] = {}
        #: Those that are distinguished.
        self._models: set[str] = set()
        #: Those whose figures have begun: provider, model, purpose.
        self._begun: set[tuple[str, ...]] = set()
        self._line: LoopLink | None = None
        self._server: MetricsServer | None = None
        # Of no use to Prometheus, and half as many lines again.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        about = "The version of batchd, and of Python."
        build = Gauge("batchd_build_info", about, ("version", "python"), registry=registry)
        build.labels(__version__, platform.python_version()).set(1)
        self._counters = {
            name: Counter(f"batchd_{name}", meaning, labels, registry=registry)
            for name, (meaning, labels) in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"batchd_{name}", meaning, labels, registry=registry, buckets=buckets)
            for name, (meaning, labels, buckets) in _HISTOGRAMS.items()
        }
        # Else the first of each would be no increase.
        for outcome in ("received", "rejected", "finished"):
            self._add("batches", outcome, by=0)
        for cause in ("park", "drain"):
            self._add("tasks_suspended", cause, by=0)

    def opened(self, desk: StatusDesk, _store: Store) -> None:
        """Begin to serve."""
        self._line = line = LoopLink(desk, Action.METRICS_TROUBLE)
        self.registry.register(self)
        address, hosts = self._config.address, self._config.hosts
        self._server = MetricsServer(address, hosts, self.registry, line)

    async def close(self) -> None:
        """End the server."""
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield gauges, all of one moment; none where the daemon does not answer."""
        if self._line and (now := self._line.standing()):
            for name, meaning, labels, samples in _gauges(now):
                gauge = GaugeMetricFamily(f"batchd_{name}", meaning, labels=labels)
                for values, value in samples:
                    gauge.add_metric(values, value)
                yield gauge

    def _add(self, name: str, *labels: str, by: float = 1) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(by)

    def _observe(self, name: str, seconds: float, *labels: str) -> None:
        histogram = self._histograms[name]
        (histogram.labels(*labels) if labels else histogram).observe(seconds)

    # What the daemon reports

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Count it."""
        self._add("batches", "received")

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Count it."""
        self._add("batches", "rejected")

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Count it."""
        self._add("batches", "finished")

    def worker_died(self, cause: str) -> None:
        """Count it."""
        self._add("worker_deaths")

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """Remember which models its calls go to."""
        self._active[ref] = _Active(terms)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Count what the event records."""
        if active := self._active.get(ref):
            self._count(active, event)
        if isinstance(event, Suspended | TaskFinished):
            self._active.pop(ref, None)

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Count a result."""
        result = decoders.decode(finished.result, ResultV1)
        status, reason = finished.status.value, finished.reason.value if finished.reason else ""
        self._add("tasks_finished", status, reason)
        self._observe("task_run_seconds", result.timing.run_s, status)
        self._observe("task_queue_seconds", result.timing.queued_s)
        self._add("task_parked_seconds", by=result.timing.parked_s)
        self._add("unsettled_calls", by=result.usage.unsettled_calls)
        self._add("unsettled_cost_usd", by=result.cost.unsettled or 0.0)

    # What events record

    def _count(self, active: _Active, event: Event) -> None:
        match event:
            case CallStarted():
                active.call, setup = event, active.terms.setup(event.purpose)
                self._begin(setup, event.purpose)
                self._observe("model_call_wait_seconds", max(0.0, event.waited_s), setup.provider)
            case CallAnswered():
                self._add("items_removed", by=len(event.answer.removed))
                if call := active.call:
                    self._count_answer(active.terms.setup(call.purpose), call.purpose, event)
            case CallFailed() if call := active.call:
                model = self._named(active.terms.setup(call.purpose))
                self._add("model_calls", *model, call.purpose, "failed")
                self._add("model_failures", *model, event.failure.kind)
            case ToolRan():
                tool = event.call.name if event.call.name in _TOOLS else _OTHER
                self._add("tool_calls", tool, event.outcome)
                self._observe("tool_seconds", event.seconds, tool)
                self._add("network_refusals", by=len(event.refused))
            case RoundEvaluated():
                verdict = "done" if event.evaluation.done else "not_done"
                self._add("evaluations", event.evaluation.by, verdict)
                self._add("network_refusals", by=len(event.refused))
            case Compacted():
                self._add("compactions")
            case Suspended():
                self._add("tasks_suspended", event.cause)

    def _begin(self, setup: ModelSetup, purpose: Purpose) -> None:
        """Begin the figures of a model at 0: else the first of each would be no increase."""
        if len(self._models) < _MODELS and len(setup.name) <= _MAX_NAME_CHARS:
            self._models.add(setup.name)
        model = self._named(setup)
        if (*model, purpose) not in self._begun:
            self._begun.add((*model, purpose))
            for outcome in ("answered", "failed"):
                self._add("model_calls", *model, purpose, outcome, by=0)
            for kind in FailureKind:
                self._add("model_failures", *model, kind, by=0)

    def _named(self, setup: ModelSetup) -> tuple[str, str]:
        return setup.provider, setup.model if setup.name in self._models else _OTHER

    def _count_answer(self, setup: ModelSetup, purpose: Purpose, event: CallAnswered) -> None:
        model, usage, cost = self._named(setup), event.answer.usage, event.paid(setup.price)
        call = (*model, purpose)
        self._add("model_calls", *call, "answered")
        self._observe("model_call_seconds", event.answer.seconds, *model)
        self._add("tokens", *call, "input", by=usage.input_tokens)
        self._add("tokens", *call, "output", by=usage.output_tokens)
        self._add("cached_input_tokens", *call, by=usage.cached_input_tokens)
        self._add("reasoning_tokens", *call, by=usage.reasoning_tokens)
        self._add("unpriced_calls", *call, by=cost is None)
        self._add("cost_usd", *call, by=cost.total if cost else 0.0)


def _gauges(now: DaemonStatus) -> Iterator[_Gauge]:
    tasks, day, workers = now.tasks, now.day, now.workers
    single: dict[str, tuple[str, float]] = {
        "batches_open": ("Batches whose summary is still to come.", now.batches.open),
        "agents_busy": ("Agents at work.", tasks.running),
        "agent_slots": ("Agents that can be at work at once.", now.slots),
        "workers": ("Worker processes.", len(workers)),
        "workers_resident_memory_bytes": ("Their memory.", sum(w.rss for w in workers)),
        "draining": ("1 while the daemon ends.", now.draining),
    }
    if day is not None:
        spent = "What was spent today; what may have been paid counts."
        single |= {
            "day_budget_usd": ("The day's budget, in UTC; 0: none.", day.limit_usd),
            "day_spent_usd": (spent, day.spent_usd),
            "day_reserved_usd": ("Set aside for calls under way.", day.reserved_usd),
        }
    for name, (meaning, value) in single.items():
        yield name, meaning, (), [((), value)]
    standing = {"queued": tasks.queued, "running": tasks.running, "parked": tasks.parked}
    yield _counted("tasks", "Tasks that have not ended.", "status", standing)
    there = collections.Counter(worker.node for worker in workers if worker.node)
    busy = {node: sum(w.tasks for w in workers if w.node == node) for node in there}
    yield _counted("node_workers", "Worker processes on another machine.", "node", there)
    yield _counted("node_agents_busy", "Agents at work there.", "node", busy)
    for name, meaning, key in (
        ("model_calls_in_flight", "Requests that wait for their answers.", "under_way"),
        ("model_calls_waiting", "Requests that wait for their turn.", "waiting"),
        ("model_calls_limit", "How many may be under way at a time.", "concurrent"),
        ("provider_pause_seconds", "How long the provider asks everybody to wait.", "paused_s"),
    ):
        figures = {p: msgspec.structs.asdict(of)[key] for p, of in now.providers.items()}
        yield _counted(name, meaning, "provider", figures)
    parked = [((p.name, p.cause), 1.0) for p in now.parked if p.scope == Scope.PROVIDER]
    meaning = "1 while nothing is sent to it, and why."
    yield "provider_parked", meaning, ("provider", "cause"), parked
    scopes = collections.Counter(str(parking.scope) for parking in now.parked)
    by_scope = {scope.value: scopes[scope] for scope in Scope}
    yield _counted("parkings", "Things that wait as a whole, by what they are.", "scope", by_scope)
    troubles = collections.Counter(each.what for each in now.troubles)
    yield _counted("troubles", "What the daemon cannot do at this time.", "what", troubles)


def _counted(name: str, meaning: str, label: str, values: Mapping[str, float]) -> _Gauge:
    return name, meaning, (label,), [((key,), value) for key, value in values.items()]
