"""Keys are nowhere to be found: not in the store, the log,
results, transcripts, commands' output, nor any /proc.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import sqlite3
import stat
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

KEY = "k3y-Of_the.operator/4711+abc=="
HEADER = "h34der-secret-0815"
QUERY = "qu3ry-secret-1234"
BODY = "b0dy-secret-5678"
SECRETS = (KEY, HEADER, QUERY, BODY)

#: What the daemon may hand out to tasks, and what a task brings itself.
FROM_ENV, FROM_FILE, INLINE = "ghp-from-the-env-12", "npm-from-a-file-34", 'in "line" 56/+=x'
HANDED = (FROM_ENV, FROM_FILE, INLINE)
ENV = {
    "PLAIN": "plain-value",
    "ONE": {"from_env": "MY_GIT_TOKEN"},
    "TWO": {"from_file": "npm"},
    "THREE": {"secret": INLINE},
}
#: A command that prints every secret, and one that prints them where no output is cut.
PRINT = "echo $PLAIN; env; echo $ONE | base64; echo $ONE$TWO >&2; seq 9000; env; touch $TWO"
KEEP = 'printf "%s\\n" "$ONE" "$TWO" "$THREE" > kept; env; false'

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
[log]
level = "debug"
[limits]
max_iterations = 1
[secrets]
env = ["MY_GIT_TOKEN"]
files = {{ npm = "keys/npm.token" }}
"""


class _Echo(http.server.BaseHTTPRequestHandler):
    """A provider that sends back everything it was sent: in errors, in answers, in tool calls."""

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
            case "print" if turn == 0:
                self._tool(PRINT)
            # At first it is shown the file, which it has not read.
            case "edit" if turn < 2:
                given = {"path": ".env", "old": "MODE=dev", "new": "MODE=live"}
                self._tool(json.dumps(given), name="edit_file")
            case "tool" | "print" | "edit":
                self._answer("Done.")
            case name:
                self._send(int(name), {"error": {"message": heard, "type": "x", "code": "y"}})

    def _answer(self, content: str) -> None:
        message = {"role": "assistant", "content": content, "reasoning_content": content}
        self._send(
            200, {"model": content, "choices": [{"finish_reason": "stop", "message": message}]}
        )

    def _tool(self, command: str, name: str = "shell") -> None:
        arguments = json.dumps({"command": command}) if name == "shell" else command
        function = {"name": name, "arguments": arguments}
        calls = [{"id": command, "type": "function", "function": function}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        self._send(200, {"choices": [{"finish_reason": "tool_calls", "message": message}]})

    def _send(self, status: int, body: Mapping[str, Any], location: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-RateLimit-Echo", self.headers.get("authorization", ""))
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
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys/npm.token").write_text(f"{FROM_FILE}\n")
    return Keyed(tmp_path, {"MY_ECHO_KEY": KEY, "MY_GIT_TOKEN": FROM_ENV})


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    return found


def proc(pid: int, name: str) -> bytes:
    """Return what /proc shows of all that a process started;
    nothing of what has ended meanwhile.
    """
    text = b""
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{each}/{name}").read_bytes() + b"\n"
    return text


def leaks(data: bytes, secrets: Sequence[str] = SECRETS) -> list[str]:
    """Return which secrets stand in ``data``, as they are or in JSON."""
    forms = {secret: (secret.encode(), json.dumps(secret)[1:-1].encode()) for secret in secrets}
    return [secret for secret in secrets if any(form in data for form in forms[secret])]


def leaky_files(folder: Path, secrets: Sequence[str] = SECRETS) -> list[tuple[str, list[str]]]:
    """Return the files below a folder that hold a secret,
    and rows of the store, which are deflated.
    """
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "config.toml"]
    texts = {str(p.relative_to(folder)): p.read_bytes() for p in files}
    with contextlib.closing(sqlite3.connect(folder / ".batchd/batchd.db")) as db:
        for table in ("events", "specs", "secrets"):
            for row, body in db.execute(f"SELECT rowid, body FROM {table}"):
                texts[f"{table} {row}"] = zlib.decompress(body) if body[:1] == b"x" else body
    return [(name, found) for name, text in texts.items() if (found := leaks(text, secrets))]


def test_a_provider_that_echoes_keys_leaves_no_trace_of_them(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """Keys sent back in errors, answers and tool calls reach no file,
    no command's output and no /proc.
    """
    names = ("answer", "tool", "400", "403", "404")
    tasks = [{"id": f"t{n}", "first_prompt": "x", "model": f"echo/{n}"} for n in names]
    with keyed.serving() as daemon:
        assert keyed.batchd("submit", keyed.write("batch.json", tasks)).returncode == 0
        # Those whose model is gone wait, and `status` says for what.
        done = [keyed.folder / f"outbox/batch/t{n}.json" for n in ("answer", "tool", "400")]
        keyed.eventually(lambda: all(path.exists() for path in done))
        keyed.eventually(
            lambda: len(json.loads(keyed.batchd("status", "--json").stdout)["parked"]) == 2
        )
        assert leaks(keyed.batchd("status", "batch").stdout.encode()) == []
        keyed.batchd("cancel", "batch")
        keyed.eventually((keyed.folder / "outbox/batch/summary.json").exists)
        for name in ("environ", "cmdline"):
            assert leaks(proc(daemon.pid, name)) == [], name
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


def test_a_parked_provider_is_reported_without_its_key(keyed: Keyed) -> None:
    """Why tasks wait, in the status, the store and the log,
    holds no key that the provider sent back.
    """
    with keyed.serving():
        keyed.batchd("submit", "--prompt", "x", "--model", "echo/401")
        keyed.eventually(lambda: "refuses the API key" in keyed.batchd("status", "--json").stdout)
        assert leaks(keyed.batchd("status", "--json").stdout.encode()) == []
        assert leaky_files(keyed.folder) == []


def test_processes_that_hold_keys_leave_no_core_dump(keyed: Keyed) -> None:
    """The daemon and its workers are closed to core dumps."""
    with keyed.serving() as daemon:
        keyed.batchd("submit", "--prompt", "x", "--wait")
        limits = re.findall(
            "^Max core file size +(.*?) +bytes", proc(daemon.pid, "limits").decode(), re.MULTILINE
        )
        assert len(limits) > 3
        assert all(x.split() == ["0", "0"] for x in limits)


def test_a_one_shot_run_takes_the_key_out_of_its_environment(keyed: Keyed) -> None:
    """``batchd run`` passes no key on to its children either."""
    file = keyed.write("batch.json", [{"first_prompt": "x", "model": "echo/slow"}])
    command = keyed.command("run", file)
    with subprocess.Popen(command, env=keyed.environment, stdout=subprocess.DEVNULL) as run:
        keyed.eventually(lambda: len(descendants(run.pid)) > 3)
        assert leaks(proc(run.pid, "environ")) == []
        assert run.wait(PATIENCE_S) == 0
    assert "Bearer [secret]" in keyed.result("batch", "001")["answer"]


def test_check_takes_no_key_along_to_where_a_redirect_leads(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """A provider that redirects is reported; no other server is sent its key."""
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


def _left(spool: Spool) -> list[str]:
    """Return where a secret of a task still lies:
    not where it came from, nor where a command put it.
    """
    found = [name for name, _ in leaky_files(spool.folder, HANDED)]
    ours = [name for name in found if not name.startswith("keys/") and "/001/" not in name]
    return [name for name in ours if not name.endswith("request.json")]


def test_secret_variables_reach_commands_and_nothing_else(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """From the task file, the environment or a file:
    commands have them, the model and every file a mask.
    """
    task = {"first_prompt": "x", "model": "echo/print", "env": ENV, "check": KEEP}
    file = keyed.write("batch.json", [task])
    with keyed.serving():
        keyed.batchd("submit", file, "--wait")
        file.unlink()
        kept = (keyed.folder / "outbox/batch/001/kept").read_text().splitlines()
        assert kept == [FROM_ENV, FROM_FILE, INLINE]
        for command in ("logs batch/001", "status batch/001 --json"):
            assert leaks(keyed.batchd(*command.split()).stdout.encode(), HANDED) == []
    assert _left(keyed) == []
    asked = [json.dumps(body) for _, _, body in echo.seen]  # type: ignore[attr-defined]
    assert len(asked) == 2
    assert all(leaks(text.encode(), HANDED) == [] for text in asked)
    assert "plain-value" in asked[1]
    assert "$ONE, $TWO, $THREE" in asked[0]
    assert keyed.result("batch", "001")["evaluation"]["feedback"].count("[secret]") >= 3


def test_a_file_that_holds_a_secret_can_be_edited(keyed: Keyed) -> None:
    """The mask is for those who look: it is never written in the secret's place."""
    work = keyed.folder / "repo"
    work.mkdir()
    (work / ".env").write_text(f"TOKEN={FROM_ENV}\nMODE=dev\n")
    if os.geteuid() == 0:
        os.chown(work, 65534, 65534)
        os.chown(work / ".env", 65534, 65534)
    task = {"first_prompt": "x", "model": "echo/edit", "env": ENV, "dir": "repo"}
    with keyed.serving():
        keyed.batchd("submit", keyed.write("batch.json", [task]), "--wait")
    assert (work / ".env").read_text() == f"TOKEN={FROM_ENV}\nMODE=live\n"


def test_a_secret_survives_a_crash_and_goes_with_its_task(keyed: Keyed) -> None:
    """While the task waits, the store keeps the value, for its owner alone;
    once it has ended, nothing does.
    """
    task = {"first_prompt": "x", "model": "echo/print", "env": ENV, "check": KEEP}
    file = keyed.write("batch.json", [task])
    state = keyed.folder / ".batchd"
    with keyed.serving() as daemon:
        keyed.batchd("pause", "--all")
        keyed.batchd("submit", file)
        file.unlink()
        keyed.eventually((keyed.folder / "outbox/batch/request.json").exists)
        daemon.kill()
        daemon.wait()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "batchd.db").stat().st_mode) == 0o600
    assert {name.split()[0] for name in _left(keyed)} <= {".batchd/batchd.db-wal", "secrets"}
    with keyed.serving():
        keyed.batchd("resume")
        keyed.eventually((keyed.folder / "outbox/batch/summary.json").exists)
        kept = (keyed.folder / "outbox/batch/001/kept").read_text().splitlines()
        assert kept == [FROM_ENV, FROM_FILE, INLINE]
        keyed.eventually(lambda: _left(keyed) == [])  # also with the daemon still running


def test_a_secret_of_the_file_is_read_again_for_a_retry(keyed: Keyed) -> None:
    """What the store has dropped is had from the request; without that, the retry is refused."""
    task = {"first_prompt": "x", "model": "echo/print", "env": ENV, "check": KEEP}
    with keyed.serving():
        keyed.batchd("submit", keyed.write("batch.json", [task]), "--wait")
        assert keyed.batchd("retry", "batch").returncode == 0
        keyed.eventually((keyed.folder / "outbox/batch-2/summary.json").exists)
        kept = (keyed.folder / "outbox/batch-2/001/kept").read_text().splitlines()
        assert kept == [FROM_ENV, FROM_FILE, INLINE]
        (keyed.folder / "outbox/batch/request.json").unlink()
        refused = keyed.batchd("retry", "batch")
    assert refused.returncode == 2
    assert "the secrets of 001 were deleted at its end" in refused.stderr


def test_a_secret_that_is_not_there_ends_the_task_before_anything_is_paid(
    keyed: Keyed, echo: http.server.ThreadingHTTPServer
) -> None:
    """The result names the variable or the file."""
    (keyed.folder / "keys/npm.token").unlink()
    task = {"first_prompt": "x", "model": "echo/print", "env": ENV}
    with keyed.serving():
        keyed.batchd("submit", keyed.write("batch.json", [task]), "--wait")
    error = keyed.result("batch", "001")["error"]
    assert error["type"] == "sandbox"
    assert "the file npm of [secrets.files] is not set, or cannot be read" in error["message"]
    assert echo.seen == []  # type: ignore[attr-defined]
