"""Metrics as machines fetch them: a real daemon at work,
scraped over HTTP, held to its own outbox.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from weather import Station, until

from batchd import control

pytestmark = pytest.mark.in_turns

_MORE = """
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[models."standin/steps-1"]
input_usd_per_mtok = 3.0
output_usd_per_mtok = 4.0
[metrics]
{metrics}
"""
#: Bound as an import hook would be: what is below these names is not to be had.
_WITHOUT = """\
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"prometheus_client", "opentelemetry"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


class Scrape:
    """The samples of one look."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [s for f in text_string_to_metric_families(text) for s in f.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all samples under a name that have these labels."""
        return sum(
            s.value
            for s in self.samples
            if s.name == f"batchd_{name}" and labels.items() <= s.labels.items()
        )


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _station(folder: Path, base_url: str, metrics: str, model: str = "steps-3") -> Station:
    return Station(folder, base_url, model=model, more=_MORE.format(metrics=metrics, model=model))


def _scrape(port: int) -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return Scrape(answer.read().decode())


def _answers(port: int) -> Scrape | None:
    with contextlib.suppress(OSError):
        return _scrape(port)
    return None


def _results(station: Station) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in station.outbox.glob("*/results.jsonl")
        for line in path.read_text().splitlines()
    ]


def _file(count: int, **task: Any) -> bytes:
    return json.dumps(
        {"tasks": [{"first_prompt": f"do {n} {task}", **task} for n in range(count)]}
    ).encode()


def _documented() -> dict[str, set[str]]:
    """Return the metrics of docs/operating.md, each with the labels that its row names."""
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    rows = re.findall(r"^\| (`.+?) \| (.*?) \|", page.partition("| metric `")[2], re.MULTILINE)
    return {
        f"batchd_{name}": set(re.findall(r"`(\w+)`", kind))
        for names, kind in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_figures_equal_what_the_outbox_says(
    tmp_path: Path, slow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls, tokens, money, 429s, verdicts, tools and ends add up to the very sums of the results.

    No task has labels of its own; metrics and labels are those of the documentation.
    """
    port = _port()
    monkeypatch.setenv("BATCHD_EVALUATION__JUDGE_MODEL", "standin/steps-1")
    model = "retry-after-0.1+429-1+steps-3"
    station = _station(tmp_path, slow_server, f'listen = "127.0.0.1:{port}"', model)
    with station.serving():
        station.drop("good.json", _file(6))
        station.drop("judged.json", _file(2, evaluator="judge"))
        station.drop("bad.json", _file(1, model="standin/400+steps-1"))
        station.drop("worse.json", b'{"tasks": [{"no_such_key": 1}]}')
        for batch in ("good", "judged", "bad"):
            station.summary(batch)
        station.refused("worse")
        until(lambda: _scrape(port).sum("batches_total", outcome="finished") == 3)
        found, results = _scrape(port), _results(station)
    assert len(results) == 9
    usage = Counter[str]()
    for result in results:
        usage.update({k: v for k, v in result["usage"].items() if isinstance(v, int)})
    assert found.sum("model_calls_total", outcome="answered") == usage["calls"] > 20
    assert found.sum("tokens_total", kind="input") == usage["input_tokens"] > 0
    assert found.sum("tokens_total", kind="output") == usage["output_tokens"] > 0
    assert found.sum("cached_input_tokens_total") == usage["cached_input_tokens"]
    judged = sum(r["usage"]["by_purpose"]["judge"]["calls"] for r in results)
    assert found.sum("model_calls_total", purpose="judge", outcome="answered") == judged == 2
    assert found.sum("model_calls_total", model="steps-1") == judged
    cost = sum(r["cost"]["total"] for r in results if r["cost"]["total"])
    assert found.sum("cost_usd_total") == pytest.approx(cost, abs=1e-9)
    assert cost > 0
    assert found.sum("model_call_seconds_count") == usage["calls"]
    assert found.sum("model_call_seconds_sum") == pytest.approx(
        sum(r["timing"]["model_s"] for r in results), abs=0.01
    )
    assert found.sum("task_run_seconds_sum") == pytest.approx(
        sum(r["timing"]["run_s"] for r in results), abs=0.01
    )
    assert found.sum("tool_seconds_sum") == pytest.approx(
        sum(r["timing"]["tool_s"] for r in results), abs=0.01
    )
    for status, count in Counter(r["status"] for r in results).items():
        assert found.sum("tasks_finished_total", status=status) == count
    assert found.sum("tasks_finished_total", status="error", reason="bad_request") == 1
    limited = sum(x["status"] == 429 for x in station.asked())
    assert found.sum("model_failures_total", kind="rate_limited") == limited >= 8
    assert found.sum("model_failures_total", kind="bad_request") == 1
    assert found.sum("tool_calls_total", tool="shell", outcome="ran") == 16
    assert found.sum("evaluations_total", by="judge", verdict="done") == 2
    assert found.sum("batches_total", outcome="rejected") == 1
    assert (found.sum("agent_slots"), found.sum("agents_busy"), found.sum("tasks")) == (2, 0, 0)
    labels = {value for sample in found.samples for value in sample.labels.values()}
    assert not labels & {"good", "judged", "bad", "worse", "001", "good/001"}
    documented = _documented()
    assert set(re.findall(r"^# TYPE (batchd_\w+)", found.text, re.MULTILINE)) == set(documented)
    for sample in found.samples:
        name = re.sub(r"_(bucket|sum|count)$", "", sample.name)
        assert set(sample.labels) - {"le"} <= documented.get(name, set(sample.labels)), name


def test_the_state_of_the_moment_is_shown(tmp_path: Path, model_server: str) -> None:
    """While tasks run, wait and are parked, the gauges say so;
    and who has to wait, and for what.
    """
    port = _port()
    station = _station(tmp_path, model_server, f'listen = "127.0.0.1:{port}"', "latency-1+steps-3")
    state = tmp_path / ".batchd"
    with station.serving():
        station.drop("b.json", _file(5))
        until(lambda: _scrape(port).sum("model_calls_in_flight", provider="standin") == 2)
        now = _scrape(port)
        assert (now.sum("tasks", status="running"), now.sum("tasks", status="queued")) == (2, 3)
        assert (now.sum("agents_busy"), now.sum("batches_open")) == (2, 1)
        assert now.sum("day_reserved_usd") > 0
        assert now.sum("workers_resident_memory_bytes") > 1 << 20
        control.request(state, "pause", scope="all", name="")
        until(lambda: _scrape(port).sum("tasks", status="parked") == 2)
        now = _scrape(port)
        assert (now.sum("tasks", status="running"), now.sum("parkings", scope="all")) == (0, 1)
        assert now.sum("tasks_suspended_total", cause="park") == 2
        control.request(state, "resume", scope="", name="")
        station.completed("b", 5)
        until(lambda: _scrape(port).sum("tasks") == 0)


def test_a_dead_worker_is_counted(tmp_path: Path, model_server: str) -> None:
    """A worker that is killed at its work shows;
    what its call may have cost is shown once its task has ended.
    """
    port = _port()
    station = _station(tmp_path, model_server, f'listen = "127.0.0.1:{port}"', "latency-2+steps-2")
    with station.serving():
        station.drop("b.json", _file(1))
        until(lambda: _scrape(port).sum("model_calls_in_flight") == 1)
        daemon = json.loads(station.status("--json"))["daemon"]
        os.kill(daemon["running"][0]["worker"], signal.SIGKILL)
        station.completed("b")
        until(lambda: _scrape(port).sum("tasks_finished_total") == 1)
        now, [result] = _scrape(port), _results(station)
    assert now.sum("worker_deaths_total") == 1
    assert now.sum("unsettled_calls_total") == result["usage"]["unsettled_calls"] == 1
    assert now.sum("unsettled_cost_usd_total") == pytest.approx(result["cost"]["unsettled"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the descriptors of a sealed process")
def test_no_other_process_has_the_port(tmp_path: Path, model_server: str) -> None:
    """Fork server, workers and their commands inherit neither the socket
    nor a thread of the exporter.
    """
    port = _port()
    station = _station(tmp_path, model_server, f'listen = "127.0.0.1:{port}"', "latency-1+steps-2")
    with station.serving():
        station.drop("b.json", _file(2))
        until(lambda: _answers(port) and _scrape(port).sum("model_calls_in_flight") == 2)
        daemon, *others = station.processes()
        assert len(others) >= 3
        listening = f":{port:04X} 00000000:0000 0A"
        lines = Path("/proc/net/tcp").read_text().splitlines()
        [inode] = [line.split()[9] for line in lines if listening in line]
        assert f"socket:[{inode}]" in _descriptors(daemon)
        for pid in others:
            assert f"socket:[{inode}]" not in _descriptors(pid)
            names = [p.read_text().strip() for p in Path(f"/proc/{pid}/task").glob("*/comm")]
            assert "metrics" not in names


def _descriptors(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(path.readlink()))
    return found


def test_a_port_in_use_is_reported_and_waited_for(tmp_path: Path, model_server: str) -> None:
    """The daemon works on without its metrics, says who is in the way,
    and takes the port once it is free.
    """
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        station = _station(tmp_path, model_server, f'listen = "127.0.0.1:{port}"')
        with station.serving():
            station.drop("b.json")
            station.completed("b")
            until(station.troubles)
            [trouble] = station.troubles()
            assert trouble["what"] == "metrics_trouble"
            assert f"127.0.0.1:{port}, another process listens there" in trouble["message"]
            assert trouble["mend"] == "end that, or set another [metrics] listen"
            other.close()
            until(lambda: _answers(port))
            until(lambda: not station.troubles())
            assert _scrape(port).sum("tasks_finished_total") == 1
        logged = station.logged("metrics_trouble")
        assert [line["level"] for line in logged] == ["error", "warning"]


def test_clients_that_say_nothing_hurt_no_other(tmp_path: Path, model_server: str) -> None:
    """Connections that ask nothing keep neither the daemon from its work nor,
    for long, Prometheus from its figures.
    """
    port = _port()
    station = _station(tmp_path, model_server, f'listen = "127.0.0.1:{port}"')
    with station.serving(), contextlib.ExitStack() as guests:
        until(lambda: _answers(port))
        for _ in range(40):
            guests.enter_context(socket.create_connection(("127.0.0.1", port)))
        station.drop("b.json", _file(4))
        station.completed("b", 4)
        until(lambda: _answers(port))
    assert not station.logged("metrics_trouble")
    assert "Traceback" not in station.text()


def test_a_guest_who_cannot_be_taken_in_costs_nothing() -> None:
    """While the process has no descriptor left,
    the guests at the door do not keep a thread turning; then they are served.
    """
    script = """
import resource, socket, time
from prometheus_client import CollectorRegistry
from batchd.telemetry.metrics_server import MetricsServer
class Line:
    def failed(self, error): raise SystemExit(str(error))
    worked = staticmethod(lambda: None)
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = probe.getsockname()
MetricsServer(address, (), CollectorRegistry(), Line())
for _ in range(200):
    guest = socket.socket()
    if not guest.connect_ex(address):
        break
    time.sleep(0.05)
known, second = resource.getrlimit(resource.RLIMIT_NOFILE), socket.socket()
time.sleep(0.3)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, known[1]))
second.connect(address)
before = time.process_time()
time.sleep(1.5)
spent = time.process_time() - before
resource.setrlimit(resource.RLIMIT_NOFILE, known)
second.sendall(b"GET / HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
print(second.recv(15).decode(), spent < 0.15, spent)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout.startswith("HTTP/1.0 200 OK True"), done.stdout


def test_nothing_is_needed_where_nothing_is_asked_for(tmp_path: Path, model_server: str) -> None:
    """Without the extras the daemon works;
    what needs them is refused at the start, and by `check`, with the fix.
    """
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT)
    station = _station(tmp_path, model_server, "")
    with station.serving():
        station.drop("b.json")
        station.completed("b")
    for section, setting, package in (
        ("metrics", "METRICS__LISTEN=127.0.0.1:9464", "prometheus-client"),
        ("traces", "TRACES__ENDPOINT=http://127.0.0.1:4318", "opentelemetry-sdk"),
    ):
        name, value = f"BATCHD_{setting}".split("=", 1)
        paths = f"{tmp_path}:{Path(__file__).parents[2]}"
        environment = {**os.environ, "PYTHONPATH": paths, name: value}
        for command in (["serve"], ["check", "--offline"]):
            ended = subprocess.run(
                [*station.command()[:-1], *command],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                timeout=PATIENCE_S,
            )
            assert ended.returncode == 3
            printed = ended.stdout + ended.stderr
            assert f"[{section}] needs packages that are not installed" in printed
            assert " -m pip install " in printed
            assert f"'{package}>=" in printed
            assert "Traceback" not in printed


def test_other_machines_are_let_in_with_a_warning(tmp_path: Path, model_server: str) -> None:
    """An address that is not loopback's works, and the log says what that means."""
    port = _port()
    station = _station(tmp_path, model_server, f'listen = "0.0.0.0:{port}"')
    with station.serving():
        until(lambda: _answers(port))
        [warning] = [x for x in station.logged("exposed") if "[metrics]" in str(x["path"])]
        assert "other machines can read there" in str(warning["message"])


def test_pages_of_other_sites_read_no_figures(tmp_path: Path, model_server: str) -> None:
    """A page elsewhere can have its own name lead here, but no address:
    names that are not ours are refused.
    """
    port = _port()
    config = f'listen = "127.0.0.1:{port}"\nhosts = ["metrics.example"]'
    with _station(tmp_path, model_server, config).serving():
        until(lambda: _answers(port))
        for host, status in {
            "evil.example": 421,
            f"evil.example:{port}": 421,
            "localhost.evil.example": 421,
            "127.0.0.1.evil.example": 421,
            "": 421,
            "localhost,127.0.0.1": 421,  # as two fields are read
            f"127.0.0.1:{port}": 200,
            f"[::1]:{port}": 200,
            "LOCALHOST": 200,
            f"metrics.example:{port}": 200,
            socket.gethostname(): 200,
        }.items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            connection.request("GET", "/metrics", headers={"Host": host})
            answer = connection.getresponse()
            assert (answer.status, b"batchd_" in answer.read()) == (status, status == 200), host
            connection.close()
