"""Metrics: hears what the daemon does, counts it, and has prometheus_client's own app show the
figures to those who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, make_wsgi_app

from batchd import decoders
from batchd.config.sections import MetricsSection
from batchd.daemon.listeners import Listener, LoopLink, StatusDesk
from batchd.errors import NotPossibleError, Problem
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
from batchd.records import Batch, ModelSetup, Price, Purpose, Ref, Task, ToolName, policy
from batchd.store.store import Store
from batchd.telemetry.counting import OTHER, CallSeries, Counters, StandingCollector

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: A model may call tools whatever it likes.
_TOOLS = frozenset(get_args(ToolName))
#: The time between two tries to get the port.
_AGAIN_S = 5.0
#: Who asks, or reads, more slowly is dropped (seconds); and who comes while so many are served.
_PATIENCE_S = 5.0
_GUESTS = 8
_END_S = 0.5
#: After a guest who could not be taken in.
_REST_S = 0.1


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
                tool = event.call.name if event.call.name in _TOOLS else OTHER
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


class _Handler(WSGIRequestHandler):
    """Reads one request, and writes its answer."""

    timeout = _PATIENCE_S

    def get_stderr(self) -> io.StringIO:
        """Take what would be logged of a reader who stands still: that is not a trouble."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves a few at a time."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._guests: set[object] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without asking DNS for our own name, as ``HTTPServer`` does: that may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """Take in a guest.

        Raises ``OSError``, after a moment: he waits at the door still, and is seen at once again.
        """
        try:
            return super().get_request()
        except OSError:  # no descriptor is to be had
            time.sleep(_REST_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether there is room for one more."""
        if len(self._guests) >= _GUESTS:
            return False
        self._guests.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:
        """See a guest out."""
        self._guests.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client that leaves in the middle of its answer is not a trouble."""


class MetricsServer:
    """The server, from the moment that the port is to be had to its ``close``."""

    def __init__(
        self,
        address: tuple[str, int],
        names: Iterable[str],
        registry: CollectorRegistry,
        line: LoopLink,
    ) -> None:
        """``names``: what it may be called, beside its addresses,
        localhost and this machine's name.
        """
        self._address = address
        own = ("localhost", socket.gethostname(), *names)
        self._names = {name.lower().rstrip(".") for name in own}
        self._figures: WSGIApplication = make_wsgi_app(registry)
        self._line = line
        self._server: _Server | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._closing.set()
        if server := self._server:
            # Wakes who waits for a guest.
            with contextlib.suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                self._server = _Server(self._address)
            except OSError as error:
                self._line.failed(self._explained(error))
                self._closing.wait(_AGAIN_S)
                continue
            self._line.worked()
            with self._server as server:
                server.set_app(self._answer)
                while not self._closing.is_set():
                    server.handle_request()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Show the figures, but not to a page of another site in somebody's browser."""
        if policy.means(environ.get("HTTP_HOST", ""), self._names):
            return self._figures(environ, start)
        start("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [
            b"this name is not known here: use an address or localhost, or name it in [metrics] hosts\n"
        ]

    def _explained(self, error: OSError) -> NotPossibleError:
        why = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        host, port = self._address
        fix = "end that, or set another [metrics] listen"
        return NotPossibleError(f"metrics cannot be served at {host}:{port}, {why}: {fix}")
