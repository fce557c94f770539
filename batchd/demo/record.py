"""Records conversations with a real model, for the stand-in to replay.

    python -m batchd.demo.record --upstream http://127.0.0.1:8091/v1 --out recordings

A proxy for chat completions: point batchd at it, run the tasks, and it leaves one file for each
first user message. A conversation that begins again replaces its file.
Summaries of long conversations are passed on, not recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import aiohttp
import msgspec
from aiohttp import web

from batchd import decoders
from batchd.demo import recordings
from batchd.demo.dialects import chat
from batchd.demo.dialects.chat import ChatMessage
from batchd.demo.faults import HttpRefusal
from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.demo.simulated_request import Caller, InvalidRequestError, SimulatedRequest
from batchd.errors import BatchdError
from batchd.records import Answer, FinishReason, Purpose, ToolCall, Usage

#: A local model may think for long.
_TIMEOUT_S = 3600.0
_PASSED_ON = ("Authorization", "Content-Type")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None

    def plain(self) -> Usage:
        nothing = _Details()
        prompt = self.prompt_tokens_details or nothing
        return Usage(
            calls=1,
            input_tokens=self.prompt_tokens,
            cached_input_tokens=prompt.cached_tokens or 0,
            cache_write_tokens=prompt.cache_write_tokens or 0,
            output_tokens=self.completion_tokens,
            reasoning_tokens=(self.completion_tokens_details or nothing).reasoning_tokens or 0,
        )


class _Said(ChatMessage, kw_only=True):
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


#: The ends that are distinguished; any other is a stop.
_FINISHED: Mapping[str, FinishReason] = {reason: reason for reason in get_args(FinishReason)}


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    usage: _Usage | None = None


def read_answer(body: bytes, seconds: float) -> Answer:
    """Return the answer in a provider's body. Raises ``msgspec.MsgspecError`` or ``IndexError``."""
    completion = decoders.decode(body, _Completion)
    choice = completion.choices[0]
    said = choice.message
    calls = (ToolCall(c.id, c.function.name, c.function.arguments) for c in said.tool_calls or ())
    return Answer(
        content=said.text,
        tool_calls=tuple(calls),
        finish_reason=_FINISHED.get(choice.finish_reason or "", "stop"),
        reasoning=said.reasoning_content or "",
        usage=(completion.usage or _Usage()).plain(),
        model=completion.model,
        seconds=round(seconds, 3),
    )


class Recorder:
    """Puts answers together to recordings, and keeps their files up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recordings: dict[str, Recording] = {}

    def add(self, request: SimulatedRequest, answer: Answer) -> str:
        """Take an answer in, and return what became of it, in a line for people."""
        if request.purpose is Purpose.JUDGE:
            return self._judged(request, answer)
        if request.purpose is not Purpose.AGENT:
            return f"{request.purpose}: passed on, not recorded"
        prompt, turn = request.first_user, request.turn
        known = self.recordings.get(prompt)
        if known is None or turn == 0:
            known = Recording(
                first_prompt=prompt, model=answer.model, without_tools=not request.native
            )
        if turn > len(known.answers):
            return f"answer {turn + 1}: its conversation began elsewhere, not recorded"
        # A turn that is asked again was not heard the first time, and takes what followed it along.
        judged = tuple(v for v in known.judge if v.after <= turn)
        return self._keep(replace(known, answers=(*known.answers[:turn], answer), judge=judged))

    def _judged(self, request: SimulatedRequest, answer: Answer) -> str:
        prompt = recordings.mentioned(request.first_user, self.recordings)
        if prompt is None:
            return "judge: of no recorded conversation, not recorded"
        # Some fence their JSON, as batchd allows them to.
        text = answer.content[answer.content.find("{") : answer.content.rfind("}") + 1]
        try:
            verdict = decoders.decode(text, RecordedVerdict)
        except (msgspec.MsgspecError, UnicodeError):
            return "judge: no valid verdict, not recorded"
        known = self.recordings[prompt]
        verdict = replace(verdict, after=len(known.answers), usage=answer.usage)
        return self._keep(replace(known, judge=(*known.judge, verdict)))

    def _keep(self, recording: Recording) -> str:
        self.recordings[recording.first_prompt] = recording
        path = recordings.save(self.folder, recording)
        return f"{path}: {len(recording.answers)} answers, {len(recording.judge)} verdicts"


class RecordingProxy:
    """Passes requests on to the upstream server, and what it answers to the recorder."""

    def __init__(self, upstream: str, recorder: Recorder, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream.rstrip("/")
        self._recorder = recorder
        self._session = session

    async def handle(self, http: web.Request) -> web.StreamResponse:
        """Answer one request."""
        data = await http.read()
        request = None
        if http.path.endswith("/chat/completions"):
            try:
                request = chat.parse(data, Caller())
            except InvalidRequestError as exc:
                return _error(400, str(exc), "invalid_request_error")
            if request.stream:
                return _error(400, "The recorder streams nothing.", "invalid_request_error")
        url = self._upstream + http.path.removeprefix("/v1")
        headers = {k: http.headers[k] for k in _PASSED_ON if k in http.headers}
        began = time.monotonic()
        try:
            async with self._session.request(http.method, url, data=data, headers=headers) as reply:
                body = await reply.read()
        except (aiohttp.ClientError, TimeoutError) as exc:
            return _error(502, f"upstream: {exc}", "server_error")
        if request is not None:
            self._record(request, reply.status, body, time.monotonic() - began)
        return web.Response(status=reply.status, body=body, content_type=reply.content_type)

    def _record(self, request: SimulatedRequest, status: int, body: bytes, seconds: float) -> None:
        if status != 200:  # HTTP's own number
            print(f"status {status}: passed on, not recorded", flush=True)
            return
        try:
            answer = read_answer(body, seconds)
        except (msgspec.MsgspecError, UnicodeDecodeError, IndexError) as exc:
            print(f"no answer to record: {exc}", flush=True)
            return
        print(self._recorder.add(request, answer), flush=True)


def _error(status: int, message: str, kind: str) -> web.Response:
    return web.Response(
        status=status,
        body=chat.error(HttpRefusal(status, message, kind)),
        content_type="application/json",
    )


async def _serve(upstream: str, folder: Path, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        app = web.Application(client_max_size=64 << 20)
        proxy = RecordingProxy(upstream, Recorder(folder), session)
        app.router.add_route("*", "/v1/{rest:.*}", proxy.handle)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            host, bound = runner.addresses[0][:2]
            print(f"listening on http://{host}:{bound}/v1", flush=True)
            await stop.wait()
        finally:
            await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """Record until SIGTERM or SIGINT, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="batchd.demo.record", description=" ".join(__doc__.split("\n\n")[0].split())
    )
    parser.add_argument("--upstream", required=True, metavar="URL", help="the real server's /v1")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the recordings")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(_serve(options.upstream, options.out, options.port))
    except (BatchdError, OSError) as exc:
        print(f"batchd.demo.record: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
