"""`batchd web` as a process, and requests to it as they go over the wire."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

from tests.conftest import Spool


@dataclass(frozen=True)
class Page:
    """A page that is being served."""

    process: subprocess.Popen[str]
    port: int
    token: str
    log: Path

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        token: str | None = "",
        body: bytes | None = None,
        **headers: str,
    ) -> tuple[HTTPResponse, bytes]:
        """Ask for something, with the token unless another is given, or None."""
        with contextlib.closing(
            HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        ) as connection:
            word = self.token if token == "" else token
            shown = {"Authorization": f"Bearer {word}"} if word else {}
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers={**shown, **given})
            answer = connection.getresponse()
            return answer, answer.read()

    def get(self, path: str) -> Any:
        """Return the answer, as JSON has it."""
        answer, data = self.ask(path)
        assert answer.status == 200, data
        return json.loads(data)

    @contextlib.contextmanager
    def listening(self, path: str, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Listen to events, as a browser does."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as sock:
            sock.sendall(self.request(path, **headers))
            with sock.makefile("rb") as stream:
                yield events(stream)

    def request(self, path: str, **headers: str) -> bytes:
        """Return a request's head."""
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"Authorization: Bearer {self.token}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()


def events(stream: Any) -> Iterator[dict[str, Any]]:
    """Yield what server-sent events bring: ``event``,
    ``id`` and ``data``, the heads of chunks apart.
    """
    assert b"200" in stream.readline()
    found: dict[str, Any] = {}
    for raw in stream:
        line = raw.decode().rstrip("\r\n")
        if not line and "data" in found:
            yield found
            found = {}
        name, colon, value = line.partition(": ")
        if colon and name in {"event", "id", "data", "retry"}:
            found[name] = json.loads(value) if name == "data" else value


@contextlib.contextmanager
def web(spool: Spool, *arguments: str, token: str = "", **environ: str) -> Iterator[Page]:
    """Serve the page of a spool, at a port that is free."""
    log = spool.folder / "web.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            spool.command("web", "--listen", "127.0.0.1:0", *arguments),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**spool.environment, **environ},
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, log.read_text()
        port = int(first.split("/")[2].rpartition(":")[2])
        kept = spool.folder / ".batchd" / "web.token"
        yield Page(process, port, token or (kept.read_text().strip() if kept.exists() else ""), log)
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.stdout.close()  # type: ignore[union-attr]


def until(condition: Any) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.02)
    return found
