"""The replay server: a model that answers as a real one once did.

    python -m batchd.demo.replay --tokens-per-second 80 --log requests.jsonl

It listens on loopback and speaks chat completions. Which conversation it is follows from the
prompt, which turn of it from the answers that a request holds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from batchd.demo import recordings
from batchd.demo.recordings import Recording
from batchd.records import Usage

MODEL = "demo"
_UNKNOWN = "This model replays recorded conversations, and has none for this prompt. Configure a real one to have the task done."
#: How batchd's judge begins.
_JUDGES = "You judge"
_MAX_BODY_BYTES = 64 << 20


class Replay:
    """The server's memory, and its answers."""

    def __init__(
        self, recorded: Sequence[Recording], tokens_per_second: float, log: Path | None
    ) -> None:
        self._recorded = {r.first_prompt: r for r in recorded}
        self._pace = tokens_per_second
        self._log = log.open("a", encoding="utf-8") if log else None
        self._ids = itertools.count(1)
        #: How many answers each prompt had, by which its judge's verdict is found.
        self._given: dict[str, int] = {}

    def app(self) -> web.Application:
        """Return the routes."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/v1/models", self.models)
        return app

    async def models(self, _: web.Request) -> web.StreamResponse:
        """List the one model that there is."""
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def answer(self, http: web.Request) -> web.StreamResponse:
        """Answer one request."""
        began = time.time()
        try:
            turns = [(str(m["role"]), str(m["content"])) for m in (await http.json())["messages"]]
        except (ValueError, KeyError, TypeError) as exc:
            wrong = {"type": "invalid_request_error", "message": f"not a request: {exc!r}"}
            return web.json_response({"error": wrong}, status=400)
        text, usage = self._said(turns)
        await asyncio.sleep(usage.output_tokens / self._pace if self._pace else 0.0)
        if self._log:
            asked = {"at": began, "messages": turns, "answer": text}
            print(json.dumps(asked, ensure_ascii=False), file=self._log, flush=True)
        return web.json_response(_completion(f"chatcmpl-{next(self._ids):08x}", text, usage))

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


async def _serve(replay: Replay, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        replay.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound = runner.addresses[0][:2]
        print(f"listening on http://{host}:{bound}/v1", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free one")
    add("--tokens-per-second", type=float, default=0.0, metavar="N", help="0: at once")
    add("--recordings", type=Path, default=recordings.SHIPPED, metavar="DIR")
    add("--log", type=Path, metavar="FILE", help="a JSON line for each request")
    options = parser.parse_args(arguments)
    try:
        recorded = recordings.load(options.recordings)
        replay = Replay(recorded, options.tokens_per_second, options.log)
        asyncio.run(_serve(replay, options.port))
    except (recordings.RecordingError, OSError) as exc:
        print(f"batchd.demo.replay: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
