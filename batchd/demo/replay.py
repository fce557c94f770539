"""The replay server: a model that answers as a real one once did.

It listens on loopback, in a thread, and speaks chat completions. Which conversation it is follows
from the prompt, which turn of it from the answers that a request holds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from batchd.demo import recordings
from batchd.demo.recordings import Recording
from batchd.records import Usage

MODEL = "demo"
_UNKNOWN = "This model replays recorded conversations, and has none for this prompt. Configure a real one to have the task done."
#: How batchd's judge begins.
_JUDGES = "You judge"


class Replay:
    """The server's memory, and its answers."""

    def __init__(
        self, recorded: Sequence[Recording], tokens_per_second: float, log: Path | None
    ) -> None:
        self._recorded = {r.first_prompt: r for r in recorded}
        self._pace = tokens_per_second
        self._log = log
        self._ids = itertools.count(1)
        #: How many answers each prompt had, by which its judge's verdict is found.
        self._given: dict[str, int] = {}

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the answer to one request, as late as a model's."""
        began = time.time()
        try:
            turns = [(str(m["role"]), str(m["content"])) for m in json.loads(body)["messages"]]
        except (ValueError, KeyError, TypeError) as exc:
            wrong = {"type": "invalid_request_error", "message": f"not a request: {exc!r}"}
            return 400, {"error": wrong}
        text, usage = self._said(turns)
        time.sleep(usage.output_tokens / self._pace if self._pace else 0.0)
        if self._log:
            asked = {"at": began, "messages": turns, "answer": text}
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{json.dumps(asked, ensure_ascii=False)}\n")
        return 200, _completion(f"chatcmpl-{next(self._ids):08x}", text, usage)

    def _said(self, turns: Sequence[tuple[str, str]]) -> tuple[str, Usage]:
        """Return the text that comes next in a conversation, and what it took."""
        asked = next((text for role, text in turns if role == "user"), "")
        judges = any(role == "system" and text.startswith(_JUDGES) for role, text in turns)
        prompt = recordings.mentioned(asked, self._recorded)
        if prompt is None:
            return (_verdict(done=False, feedback=_UNKNOWN) if judges else _UNKNOWN), Usage()
        recording = self._recorded[prompt]
        if judges:
            verdict = recording.verdict(self._given.get(prompt, 0))
            return _verdict(done=verdict.done, feedback=verdict.feedback), verdict.usage
        turn = sum(role == "assistant" for role, _ in turns)
        self._given[prompt] = turn + 1
        answer = recording.answer(turn)
        return answer.content, answer.usage


def _verdict(**fields: object) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _completion(name: str, text: str, usage: Usage) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        },
    }


class _Handler(BaseHTTPRequestHandler):
    """The HTTP of one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, replay: Replay, *connection: Any) -> None:
        self._replay = replay
        super().__init__(*connection)

    def do_GET(self) -> None:
        """List the one model that there is."""
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        """Answer one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(*self._replay.answer(body))

    def _send(self, status: int, value: object) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked is gone
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@contextlib.contextmanager
def serving(
    tokens_per_second: float, log: Path | None = None, folder: Path = recordings.SHIPPED
) -> Iterator[str]:
    """Replay the recordings of a folder for the time of the block, and give the base URL; ``log``
    gets a JSON line for each request.
    """
    replay = Replay(recordings.load(folder), tokens_per_second, log)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, replay)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
