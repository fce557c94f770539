"""Metrics: hears what the daemon does, counts it, and has the figures served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from batchd import decoders
from batchd.actions import Action
from batchd.config import telemetry
from batchd.daemon.desk import StatusDesk
from batchd.daemon.listeners import Listener
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
from batchd.records import Batch, ModelSetup, Price, Purpose, Ref, Task, ToolName
from batchd.telemetry.counting import OTHER, CallSeries, Counters
from batchd.telemetry.endpoint import MetricsServer
from batchd.telemetry.gauges import StandingCollector
from batchd.telemetry.loop_link import LoopLink

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

    def __init__(self, config: telemetry.MetricsSection) -> None:
        self._config = config
        self._counts = Counters()
        self._active: dict[Ref, _Active] = {}
        self._server: MetricsServer | None = None
        self._on_event: Mapping[type[Event], Callable[[_Active, Any], None]] = {
            CallStarted: self._call_started,
            CallAnswered: self._call_answered,
            CallFailed: self._call_failed,
            ToolRan: self._tool_ran,
            RoundEvaluated: self._evaluated,
            Compacted: lambda _active, _event: self._counts.compactions.inc(),
            Suspended: self._suspended,
        }

    def opened(self, desk: StatusDesk) -> None:
        """Begin to serve."""
        line = LoopLink(desk, Action.METRICS_TROUBLE)
        registry = self._counts.registry
        registry.register(StandingCollector(line.figures))
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
        count = self._on_event.get(type(event))
        active = self._active.get(ref)
        if count is not None and active is not None:
            count(active, event)
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

    def _call_started(self, active: _Active, event: CallStarted) -> None:
        setup = active.judge if event.purpose is Purpose.JUDGE else active.model
        active.series, active.price = self._counts.series(setup, event.purpose), setup.price
        active.series.waited.observe(max(0.0, event.waited_s))

    def _call_answered(self, active: _Active, event: CallAnswered) -> None:
        if event.answer.removed:
            self._counts.removed_items.inc(len(event.answer.removed))
        if active.series is not None:
            active.series.paid(event, active.price)

    def _call_failed(self, active: _Active, event: CallFailed) -> None:
        if active.series is not None:
            active.series.lost(event.failure.kind)

    def _tool_ran(self, _active: _Active, event: ToolRan) -> None:
        counts, tool = self._counts, event.call.name if event.call.name in _TOOLS else OTHER
        counts.tools.labels(tool, event.outcome).inc()
        counts.tool_s.labels(tool).observe(event.seconds)
        counts.refused_hosts.inc(len(event.refused))

    def _evaluated(self, _active: _Active, event: RoundEvaluated) -> None:
        verdict = "done" if event.evaluation.done else "not_done"
        self._counts.evaluations.labels(event.evaluation.by, verdict).inc()
        self._counts.refused_hosts.inc(len(event.refused))

    def _suspended(self, _active: _Active, event: Suspended) -> None:
        self._counts.suspensions.labels(event.cause).inc()
