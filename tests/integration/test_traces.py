"""Traces as an OpenTelemetry receiver gets them:
real OTLP over HTTP on loopback, from a real daemon.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from weather import Station, until

pytestmark = pytest.mark.in_turns

_MORE = """
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[traces]
endpoint = "{endpoint}"
{more}
"""
_KEY = "a-very-secret-key-0123456789"
_ERROR = 2


@dataclass(frozen=True)
class Seen:
    """A span as it arrived."""

    trace: str
    id: str
    parent: str
    name: str
    start: float
    end: float
    attributes: Mapping[str, Any]
    error: bool
    client: bool


class Receiver:
    """Takes OTLP over HTTP, as a collector does; or does not."""

    def __init__(self, port: int = 0) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        #: What it answers; 0: nothing, ever.
        self.status = 200
        #: What it says a byte at a time, for ever, in the place of an answer.
        self.dripping = b""
        #: What it says with that.
        self.saying: dict[str, str] = {}
        self.requests = 0
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.gone = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        self.requests += 1
        assert request.path == "/v1/traces"
        assert request.headers["Content-Type"] == "application/x-protobuf"
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if self.dripping:
            self.drip(request)
            return
        if not self.status:
            self.gone.wait()
            return
        if self.status == 200:
            self.bodies.append(body)
            self.headers.append({k.lower(): v for k, v in request.headers.items()})
        request.send_response(self.status)
        for name, value in {"Content-Length": "0", **self.saying}.items():
            request.send_header(name, value)
        request.end_headers()

    def drip(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Begin an answer that does not end, as long as somebody listens."""
        with contextlib.suppress(OSError):
            request.wfile.write(self.dripping)
            while not self.gone.wait(0.05):
                request.wfile.write(b"x")

    def spans(self) -> list[Seen]:
        """Return what has arrived, each span once."""
        found = {}
        for body in [*self.bodies]:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = _values(resource.resource.attributes)
                assert about["service.name"] in {"batchd", "my-spool"}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        seen = _seen(span)
                        found[seen.trace, seen.id] = seen
        return sorted(found.values(), key=lambda span: span.start)


def _seen(span: Any) -> Seen:
    return Seen(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_values(span.attributes),
        error=span.status.code == _ERROR,
        client=span.kind == 3,
    )


def _values(attributes: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(v) for v in value.array_value.values]
        return getattr(value, kind)

    return {a.key: plain(a.value) for a in attributes}


def _station(
    folder: Path, base_url: str, endpoint: str, model: str = "steps-3", more: str = ""
) -> Station:
    text = _MORE.format(model=model, endpoint=endpoint, more=more)
    return Station(folder, base_url, model=model, more=text)


def _file(count: int, **task: Any) -> bytes:
    return json.dumps(
        {"tasks": [{"first_prompt": f"do {n}", **task} for n in range(count)]}
    ).encode()


def _roots(receiver: Receiver) -> list[Seen]:
    return [span for span in receiver.spans() if not span.parent]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that works."""
    with Receiver() as receiver:
        yield receiver


def test_a_task_is_a_trace_by_the_conventions(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """One root a task, below it its calls, tools and verdicts,
    with names, tokens and money as its result has them.
    """
    station = _station(tmp_path, model_server, receiver.endpoint, more='service = "my-spool"')
    with station.serving():
        station.drop("b.json", _file(2, check="test 1 = 1", tags=["red"]))
        station.completed("b", 2)
        until(lambda: len(_roots(receiver)) == 2)
        spans = receiver.spans()
    traces = {span.trace for span in spans}
    assert len(traces) == 2
    for root in _roots(receiver):
        a = root.attributes
        result = json.loads((station.outbox / "b" / f"{a['batchd.task']}.json").read_text())
        assert (root.name, root.error, root.client) == ("invoke_agent batchd", False, False)
        assert a["gen_ai.operation.name"] == "invoke_agent"
        assert (a["gen_ai.provider.name"], a["gen_ai.request.model"]) == ("standin", "steps-3")
        assert (a["batchd.status"], a["batchd.tags"]) == ("completed", ["red"])
        assert a["batchd.cost_usd"] == pytest.approx(result["cost"]["total"])
        below = [span for span in spans if span.trace == root.trace and span != root]
        assert {span.parent for span in below} == {root.id}
        assert all(root.start <= s.start <= s.end <= root.end + 0.001 for s in below)
        names = [span.name for span in below]
        assert names == [
            *["chat steps-3", "execute_tool shell"] * 2,
            *("chat steps-3", "evaluate check"),
        ]
        chats = [span for span in below if span.client]
        for kind in ("input", "output"):
            name = f"gen_ai.usage.{kind}_tokens"
            sent = sum(span.attributes[name] for span in chats)
            assert sent == a[name] == result["usage"][f"{kind}_tokens"] > 0
        assert chats[0].attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
        assert chats[0].attributes["gen_ai.operation.name"] == "chat"
        tool = below[1].attributes
        assert (tool["gen_ai.tool.name"], tool["process.exit.code"]) == ("shell", 0)
        assert below[-1].attributes["gen_ai.evaluation.score.label"] == "done"
    known = {v for k, v in vars(gen_ai_attributes).items() if k.startswith("GEN_AI_")}
    used = {key for span in spans for key in span.attributes if key.startswith("gen_ai.")}
    assert used - known == set()
    assert not any(b"do 0" in body or b"echo step" in body for body in receiver.bodies)


def test_what_went_wrong_shows(tmp_path: Path, slow_server: str, receiver: Receiver) -> None:
    """A failed request, a task's failure, and a task that never ran,
    each with its error and nothing invented.
    """
    station = _station(tmp_path, slow_server, receiver.endpoint, "500-1+steps-2")
    with station.serving():
        tasks = [
            {"id": "shaky", "first_prompt": "do"},
            {"id": "bad", "first_prompt": "do", "model": "standin/400+steps-1"},
            {"id": "late", "first_prompt": "do", "after": ["bad"]},
        ]
        station.drop("b.json", json.dumps({"tasks": tasks}).encode())
        station.summary("b")
        until(lambda: len(_roots(receiver)) == 3)
        spans, roots = receiver.spans(), {r.attributes["batchd.task"]: r for r in _roots(receiver)}
    first, second, *_ = [s for s in spans if s.client and s.trace == roots["shaky"].trace]
    assert (first.error, second.error, roots["shaky"].error) == (True, False, False)
    assert first.attributes["error.type"] == "overloaded"
    assert first.attributes["http.response.status_code"] == 500
    assert first.end <= second.start
    bad = roots["bad"]
    assert (bad.error, bad.attributes["error.type"]) == (True, "bad_request")
    late = roots["late"]
    assert (late.error, late.attributes["batchd.reason"]) == (False, "dependency")
    assert [s for s in spans if s.trace == late.trace] == [late]


def test_content_is_sent_where_asked_for(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """With content = true, prompts, answers, commands
    and outputs stand where the conventions want them.
    """
    station = _station(tmp_path, model_server, receiver.endpoint, more="content = true")
    with station.serving():
        station.drop("b.json", _file(1))
        station.completed("b")
        until(lambda: _roots(receiver))
        spans = receiver.spans()
    [root] = _roots(receiver)
    [asked] = json.loads(root.attributes["gen_ai.input.messages"])
    assert asked == {"role": "user", "parts": [{"type": "text", "content": "do 0"}]}
    tool = next(span for span in spans if span.name == "execute_tool shell").attributes
    assert "echo step 1" in tool["gen_ai.tool.call.arguments"]
    assert "step 1" in tool["gen_ai.tool.call.result"]
    [said] = json.loads(next(s for s in spans if s.client).attributes["gen_ai.output.messages"])
    assert said["finish_reason"] == "tool_calls"
    assert said["parts"][-1]["name"] == "shell"


def test_one_trace_over_a_crash(tmp_path: Path, slow_server: str, receiver: Receiver) -> None:
    """What a daemon sent before it was killed, and what the next one sends,
    has one root and no span twice.
    """
    station = _station(tmp_path, slow_server, receiver.endpoint, "latency-0.3+steps-8")
    station.start()
    station.drop("b.json", _file(1))
    until(lambda: sum(span.client for span in receiver.spans()) >= 3)
    assert station.process is not None
    station.process.kill()
    station.process.wait()
    before = receiver.spans()
    assert not [span for span in before if not span.parent]
    with station.serving():
        station.completed("b")
        until(lambda: _roots(receiver))
    spans, [root] = receiver.spans(), _roots(receiver)
    result = json.loads((station.outbox / "b" / "001.json").read_text())
    assert {span.trace for span in spans} == {root.trace}
    assert {span.parent for span in spans if span != root} == {root.id}
    assert {span.id for span in before} < {span.id for span in spans}
    chats = [span for span in spans if span.client]
    # What was in the dead daemon's hands is lost with it:
    # at most what one second brings, and never the task.
    assert result["usage"]["calls"] - 4 <= len(chats) <= result["usage"]["calls"]
    assert root.attributes["batchd.attempts"] == 2
    assert root.start <= min(span.start for span in spans)


def test_a_receiver_that_is_down_for_a_moment_misses_nothing(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """What it refuses for the time being is sent again, and nobody need know."""
    receiver.status = 503
    station = _station(tmp_path, model_server, receiver.endpoint)
    with station.serving():
        station.drop("b.json", _file(4))
        until(lambda: receiver.requests)
        receiver.status = 200
        station.completed("b", 4)
        until(lambda: len(_roots(receiver)) == 4)
        assert len(receiver.spans()) == 4 * (1 + 3 + 2)
    assert not station.logged("traces_trouble")


def test_a_receiver_that_is_down_is_reported_until_it_takes_spans(
    tmp_path: Path, model_server: str
) -> None:
    """While no receiver takes them, the daemon says so and works on;
    once one does, it gets those of that time, and the trouble ends.
    """
    with Receiver() as gone:
        port = gone.port
    station = _station(tmp_path, model_server, gone.endpoint)
    with station.serving():
        station.drop("b.json", _file(4))
        station.completed("b", 4)
        until(station.troubles)
        [trouble] = station.troubles()
        assert trouble["what"] == "traces_trouble"
        assert f"{gone.endpoint}, cannot be reached, and spans of this time" in trouble["message"]
        assert trouble["mend"] == "start it, or correct its address and headers in [traces]"
        with Receiver(port) as receiver:
            receiver.status = 503
            # No date: the library that sends throws at it.
            receiver.saying = {"Retry-After": "Thu, 01 Jan 2026 00:00:00 +99999999999999999999"}
            station.drop("c.json", _file(1))
            until(lambda: receiver.requests)
            receiver.status, receiver.saying = 200, {}
            station.drop("d.json", _file(2))
            until(lambda: "d" in {root.attributes["batchd.batch"] for root in _roots(receiver)})
            until(lambda: not station.troubles())
            # To follow it would be to send a key elsewhere.
            receiver.status, receiver.saying = 307, {"Location": gone.endpoint}
            station.drop("e.json", _file(1))
            until(station.troubles)
            assert "answers with HTTP 307" in station.troubles()[0]["message"]
    assert station.logged("traces_trouble", "cannot be reached")[0]["level"] == "error"
    assert not station.logged("library_warned")
    assert "Traceback" not in station.text()


def test_a_receiver_that_hangs_delays_nothing(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """Whether it says nothing or begins an answer that does not end, it delays neither tasks nor,
    by more than two seconds, the daemon's end: as one that works does, in the same run.
    """
    station = _station(tmp_path, model_server, receiver.endpoint)
    took: dict[str, tuple[float, float]] = {}
    for kind, status, dripping in (
        ("works", 200, b""),
        ("hangs", 0, b""),
        ("drips", 200, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
    ):
        receiver.status, receiver.dripping = status, dripping
        with station.serving():
            begun, before = time.monotonic(), receiver.requests
            station.drop(f"a-{kind}.json", _file(1))
            station.completed(f"a-{kind}", 1)
            until(lambda before=before: receiver.requests > before)
            station.drop(f"b-{kind}.json", _file(8))
            station.completed(f"b-{kind}", 8)
            worked = time.monotonic()
            station.stop()
            took[kind] = (worked - begun, time.monotonic() - worked)
    work, end = took.pop("works")
    # It is given ten seconds for each answer, and there would be many of them.
    for hung_work, hung_end in took.values():
        assert hung_work < 3 * work + 8, took
        assert hung_end < 3 * end + 3, took
    assert "Traceback" not in station.text()


def test_keys_reach_the_receiver_alone(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """Headers from a variable are sent, and stand in no log, no process's environment;
    a refusal is reported with its fix.
    """
    station = _station(
        tmp_path, model_server, receiver.endpoint, more='headers_env = "OTLP_HEADERS"'
    )
    station.cold = True  # what its environment shows in /proc is its own
    os.environ["OTLP_HEADERS"] = f"Authorization=Bearer%20{_KEY},X-Scope-OrgID=me"
    try:
        with station.serving():
            station.drop("b.json", _file(1))
            station.completed("b")
            until(lambda: _roots(receiver))
            assert receiver.headers[-1]["authorization"] == f"Bearer {_KEY}"
            assert receiver.headers[-1]["x-scope-orgid"] == "me"
            for pid in station.processes():
                with contextlib.suppress(OSError):
                    assert _KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            receiver.status = 401
            station.drop("c.json", _file(1))
            until(station.troubles)
            [trouble] = station.troubles()
            assert f"{receiver.endpoint}, answers with HTTP 401" in trouble["message"]
    finally:
        del os.environ["OTLP_HEADERS"]
    assert _KEY not in station.text()
    refused = subprocess.run(station.command(), capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert "the environment variable OTLP_HEADERS holds no headers" in refused.stderr


def test_a_part_of_all_tasks_is_traced_whole(
    tmp_path: Path, model_server: str, receiver: Receiver
) -> None:
    """With a ratio, a task is traced from its first call to its end, or not at all."""
    station = _station(tmp_path, model_server, receiver.endpoint, "steps-2", more="ratio = 0.5")
    with station.serving():
        station.drop("b.json", _file(24))
        station.completed("b", 24)
    roots, spans = _roots(receiver), receiver.spans()
    assert 2 < len(roots) < 22
    for root in roots:
        assert len([span for span in spans if span.trace == root.trace]) == 1 + 2 + 1
    assert {span.trace for span in spans} == {root.trace for root in roots}


def test_a_worker_that_dies_leaves_its_call_in_the_trace(
    tmp_path: Path, slow_server: str, receiver: Receiver
) -> None:
    """The call that it had under way is a span too, and says that its outcome is not known."""
    station = _station(tmp_path, slow_server, receiver.endpoint, "latency-1+steps-2")
    with station.serving():
        station.drop("b.json", _file(1))
        pids: list[int] = []
        until(lambda: pids.extend(_at_the_model(station)) or pids)
        os.kill(pids[0], signal.SIGKILL)
        station.completed("b")
        until(lambda: _roots(receiver))

    def chats() -> list[Any]:
        return [span for span in receiver.spans() if span.client]

    until(lambda: len(chats()) > 2, lambda: f"{chats()}")
    kinds = Counter(span.attributes.get("error.type") for span in chats())
    assert kinds == {None: 2, "unsettled": 1}


def _at_the_model(station: Station) -> list[int]:
    """Return the workers that wait for a model's answer."""
    running = json.loads(station.status("--json"))["daemon"]["running"]
    return [int(each["worker"]) for each in running if each["step"] == "model"]
