"""Keys are nowhere to be found: not in the store, the log, results, transcripts, commands' output, nor any /proc."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Spool

KEY = "k3y-Of_the.operator/4711+abc=="
HEADER = "h34der-secret-0815"
QUERY = "qu3ry-secret-1234"
BODY = "b0dy-secret-5678"
SECRETS = (KEY, HEADER, QUERY, BODY)

CONFIG = """\
[agent]
model = "echo/answer"
[providers.echo]
base_url = "{base_url}/v1?api-key={query}&api-version=7"
api_key_env = "MY_ECHO_KEY"
max_concurrent = 4
headers = {{ X-Api-Token = "{header}", X-Title = "visible" }}
extra_body = {{ auth = {{ token = "{body}" }}, seed = 7 }}
[pool]
processes = 1
drain_s = 2
[evaluation]
by = "none"
[governor]
max_retries = 1
first_backoff_s = 0.05
"""


class _Echo(http.server.BaseHTTPRequestHandler):
    """A provider that tells everything it was sent: in errors, in answers, in tool calls."""

    def do_GET(self) -> None:
        redirect = self.server.redirect  # type: ignore[attr-defined]
        self._send(302 if redirect else 200, {"data": []}, location=redirect)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = json.loads(body)
        self.server.seen.append((self.path, dict(self.headers), request))  # type: ignore[attr-defined]
        heard = f"{self.path} {dict(self.headers)} {body.decode()}"
        turn = sum(m["role"] == "assistant" for m in request["messages"])
        match request["model"]:
            case "answer":
                self._answer(heard)
            case "slow":
                time.sleep(2)
                self._answer(heard)
            case "tool" if turn == 0:
                self._tool(f"echo {self.headers['authorization']} | tee heard.txt")
            case "tool":
                self._answer("Done.")
            case name:
                self._send(int(name), {"error": {"message": heard, "type": "x", "code": "y"}})

    def _answer(self, content: str) -> None:
        message = {"role": "assistant", "content": content, "reasoning_content": content}
        self._send(
            200, {"model": content, "choices": [{"finish_reason": "stop", "message": message}]}
        )

    def _tool(self, command: str) -> None:
        function = {"name": "shell", "arguments": json.dumps({"command": command})}
        calls = [{"id": command, "type": "function", "function": function}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        self._send(200, {"choices": [{"finish_reason": "tool_calls", "message": message}]})

    def _send(self, status: int, body: Mapping[str, Any], location: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-RateLimit-Told", self.headers.get("authorization", ""))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def echo() -> Iterator[http.server.ThreadingHTTPServer]:
    """A provider that echoes what it is sent."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.seen, server.redirect = [], ""  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@dataclass(frozen=True)
class Keyed(Spool):
    """A spool whose daemon has keys in its environment."""

    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment, with the keys."""
        return {**super().environment, **self.variables}


@pytest.fixture
def keyed(tmp_path: Path, echo: http.server.ThreadingHTTPServer) -> Keyed:
    """A spool on the echoing provider."""
    base_url = f"http://127.0.0.1:{echo.server_port}"
    config = CONFIG.format(base_url=base_url, header=HEADER, query=QUERY, body=BODY)
    (tmp_path / "config.toml").write_text(config)
    return Keyed(tmp_path, {"MY_ECHO_KEY": KEY})


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def leaks(data: bytes, secrets: Sequence[str] = SECRETS) -> list[str]:
    """Return which secrets stand in ``data``."""
    return [secret for secret in secrets if secret.encode() in data]


def leaky_files(folder: Path, secrets: Sequence[str] = SECRETS) -> list[tuple[str, list[str]]]:
    """Return the files below a folder that hold a secret, and rows of the store, which are deflated."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "config.toml"]
    texts = {str(p.relative_to(folder)): p.read_bytes() for p in files}
    with contextlib.closing(sqlite3.connect(folder / ".batchd/batchd.db")) as db:
        for table in ("events", "specs"):
            for row, body in db.execute(f"SELECT rowid, body FROM {table}"):
                texts[f"{table} {row}"] = zlib.decompress(body) if body[:1] == b"x" else body
    return [(name, found) for name, text in texts.items() if (found := leaks(text, secrets))]


def test_a_provider_that_echoes_keys_leaves_no_trace_of_them(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """Keys told back in errors, answers and tool calls reach no file, no command's output and no /proc."""
    names = ("answer", "tool", "400", "403", "404")
    tasks = [{"id": f"t{n}", "first_prompt": "x", "model": f"echo/{n}"} for n in names]
    with keyed.serving() as daemon:
        assert keyed.batchd("submit", keyed.write("batch.json", tasks)).returncode == 0
        keyed.eventually((keyed.folder / "outbox/batch/summary.json").exists)
        for pid in descendants(daemon.pid):
            for name in ("environ", "cmdline"):
                assert leaks(Path(f"/proc/{pid}/{name}").read_bytes()) == [], (pid, name)
        commands = ["status --json", "status batch --json", "check", "check --json", "logs batch"]
        for command in [*commands, *(f"logs batch/t{n}" for n in names), "cost --json", "tune"]:
            done = keyed.batchd(*command.split())
            assert leaks((done.stdout + done.stderr).encode()) == [], command
        assert leaky_files(keyed.folder) == []
    assert leaky_files(keyed.folder) == []
    path, headers, body = echo.seen[0]  # type: ignore[attr-defined]
    assert path == f"/v1/chat/completions?api-key={QUERY}&api-version=7"
    assert (headers["authorization"], headers["x-api-token"]) == (f"Bearer {KEY}", HEADER)
    assert (body["auth"], body["seed"]) == ({"token": BODY}, 7)
    answer = keyed.result("batch", "tanswer")["answer"]
    assert "Bearer [secret]" in answer
    assert "'x-title': 'visible'" in answer
    assert (keyed.folder / "outbox/batch/ttool/heard.txt").read_text() == "Bearer [secret]\n"


def test_a_parked_provider_is_told_of_without_its_key(keyed: Keyed) -> None:
    """Why tasks wait, in the status, the store and the log, holds no key that the provider told back."""
    with keyed.serving():
        keyed.batchd("submit", "--prompt", "x", "--model", "echo/401")
        keyed.eventually(lambda: "refuses the API key" in keyed.batchd("status", "--json").stdout)
        assert leaks(keyed.batchd("status", "--json").stdout.encode()) == []
        assert leaky_files(keyed.folder) == []


def test_processes_that_hold_keys_leave_no_core_dump(keyed: Keyed) -> None:
    """The daemon and its workers are closed to core dumps."""
    with keyed.serving() as daemon:
        keyed.batchd("submit", "--prompt", "x", "--wait")
        limits = [Path(f"/proc/{pid}/limits").read_text() for pid in descendants(daemon.pid)]
        assert len(limits) > 3
        assert all(re.search("^Max core file size +0 +0 ", text, re.MULTILINE) for text in limits)


def test_a_one_shot_run_takes_the_key_out_of_its_environment(keyed: Keyed) -> None:
    """``batchd run`` passes no key on to its children either."""
    file = keyed.write("batch.json", [{"first_prompt": "x", "model": "echo/slow"}])
    command = keyed.command("run", file)
    with subprocess.Popen(command, env=keyed.environment, stdout=subprocess.DEVNULL) as run:
        keyed.eventually(lambda: len(descendants(run.pid)) > 3)
        shown = [Path(f"/proc/{pid}/environ").read_bytes() for pid in descendants(run.pid)]
        assert all(leaks(text) == [] for text in shown)
        assert run.wait(30) == 0
    assert "Bearer [secret]" in keyed.result("batch", "001")["answer"]


def test_check_takes_no_key_along_to_where_a_redirect_leads(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """A provider that redirects is told of; nobody else is sent its key."""
    with stranger() as (port, heard):
        echo.redirect = f"http://127.0.0.1:{port}/models"  # type: ignore[attr-defined]
        done = keyed.batchd("check")
    assert "HTTP 302" in done.stdout
    assert heard == []


@contextlib.contextmanager
def stranger() -> Iterator[tuple[int, list[str]]]:
    """A server that is no provider of ours; its port, and what it was asked for."""
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(f"{self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, heard
        server.shutdown()
