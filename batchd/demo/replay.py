"""The replay server: a model that answers as a real one once did.

    python -m batchd.demo.replay --tokens-per-second 80 --log requests.jsonl

It listens on loopback and speaks chat completions, OpenAI's Responses and Anthropic's Messages,
whole and streamed. Which conversation it is follows from the prompt, which turn of it from the
answers that a request holds.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from msgspec.structs import replace

from batchd.demo import recordings
from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.records import Answer, ToolCall

MODEL = "demo"
_UNKNOWN = "This model replays recorded conversations, and has none for this prompt. Configure a real one to have the task done."
#: How batchd's judge begins, in its first message or in the instructions.
_JUDGES = "You judge"
_SYSTEM = frozenset({"system", "developer"})
_BLOCK = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)
_MAX_BODY_BYTES = 64 << 20
#: A JSON object, and a piece of a stream: the name of its event, empty for none, and its data.
_Json = dict[str, Any]
_Event = tuple[str, _Json]


class _Request(NamedTuple):
    """A request, in whatever dialect it came."""

    #: The text of its system message or instructions, and of its first user message.
    system: str
    first_user: str
    #: How many answers it holds.
    turn: int
    #: The tool that takes a command, where one is offered; empty: none.
    shell: str
    stream: bool


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
        for path, dialect in _DIALECTS.items():
            app.router.add_post(f"/v1{path}", functools.partial(self.answer, path, dialect))
        app.router.add_get("/v1/models", self.models)
        return app

    async def models(self, _: web.Request) -> web.StreamResponse:
        """List the one model that there is."""
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def answer(self, path: str, dialect: _Dialect, http: web.Request) -> web.StreamResponse:
        """Answer one request."""
        began = time.time()
        try:
            body = await http.json()
            request = dialect.read(body)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            wrong = {"type": "invalid_request_error", "message": f"not a request: {exc!r}"}
            return web.json_response({"type": "error", "error": wrong}, status=400)
        said = self._said(request)
        pause_s = said.usage.output_tokens / self._pace if self._pace else 0.0
        whole = dialect.whole(f"{next(self._ids):08x}", said)
        whole["model"] = body.get("model", MODEL)
        if request.stream:
            reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await reply.prepare(http)
            pieces = [*dialect.events(whole)]
            for name, data in pieces:
                await asyncio.sleep(pause_s / len(pieces))
                head = f"event: {name}\n" if name else ""
                await reply.write(f"{head}data: {json.dumps(data)}\n\n".encode())
            if dialect.end:
                await reply.write(dialect.end)
            await reply.write_eof()
        else:
            await asyncio.sleep(pause_s)
            reply = web.json_response(whole)
        if self._log:
            asked = request._asdict() | {"at": began, "path": path}
            print(json.dumps(asked, ensure_ascii=False), file=self._log, flush=True)
        return reply

    def _said(self, request: _Request) -> Answer:
        prompt = recordings.mentioned(request.first_user, self._recorded)
        judges = request.system.startswith(_JUDGES)
        if prompt is None:
            unknown = RecordedVerdict(done=False, feedback=_UNKNOWN)
            return _verdict(unknown) if judges else Answer(content=_UNKNOWN)
        recording = self._recorded[prompt]
        if judges:
            return _verdict(recording.verdict(self._given.get(prompt, 0)))
        self._given[prompt] = request.turn + 1
        said = recording.answer(request.turn)
        found = _BLOCK.search(said.content)
        if not (request.shell and recording.without_tools and found):
            return said
        call = ToolCall(f"call_{request.turn}", request.shell, json.dumps({"command": found[1]}))
        text = said.content.replace(found[0], "").strip()
        return replace(said, content=text, tool_calls=(call,), finish_reason="tool_calls")


def _verdict(verdict: RecordedVerdict) -> Answer:
    content = json.dumps({"done": verdict.done, "feedback": verdict.feedback}, ensure_ascii=False)
    return Answer(content=content, usage=verdict.usage)


def _text(content: Any) -> str:
    """Return what a message says, in one text or in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _request(body: _Json, system: str, turns: Sequence[tuple[str, str]]) -> _Request:
    """Return a request, from the roles and texts of its conversation."""
    schemas = [tool.get("function", tool) for tool in body.get("tools") or ()]
    shells = (t["name"] for t in schemas if "command" in json.dumps(t))
    return _Request(
        system=system or next((text for role, text in turns if role in _SYSTEM), ""),
        first_user=next((text for role, text in turns if role == "user"), ""),
        # What one answer consists of stands together.
        turn=sum(role == "assistant" for role, _ in itertools.groupby(role for role, _ in turns)),
        shell=next(shells, ""),
        stream=bool(body.get("stream")),
    )


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*(?:\S+\s*){1,4}|\s+", text)


class _Dialect(NamedTuple):
    """How a dialect's requests are read and its answers written."""

    read: Callable[[_Json], _Request]
    whole: Callable[[str, Answer], _Json]
    #: The same in pieces.
    events: Callable[[_Json], Iterator[_Event]]
    end: bytes = b""


def _read_chat(body: _Json) -> _Request:
    return _request(body, "", [(m["role"], _text(m.get("content"))) for m in body["messages"]])


def _chat(name: str, said: Answer) -> _Json:
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in said.tool_calls
    ]
    message = {"role": "assistant", "content": said.content} | (
        {"tool_calls": calls} if calls else {}
    )
    usage = {
        "prompt_tokens": said.usage.input_tokens,
        "completion_tokens": said.usage.output_tokens,
        "total_tokens": said.usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": said.usage.cached_input_tokens},
    }
    choice = {"index": 0, "message": message, "finish_reason": said.finish_reason}
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "choices": [choice],
        "usage": usage,
    }


def _chat_events(whole: _Json) -> Iterator[_Event]:
    (choice,) = whole["choices"]
    head = {**whole, "object": "chat.completion.chunk"}
    usage = head.pop("usage")

    def chunk(delta: _Json, reason: str | None = None) -> _Event:
        return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(choice["message"]["content"]):
        yield chunk({"content": piece})
    for at, call in enumerate(choice["message"].get("tool_calls", ())):
        yield chunk({"tool_calls": [{"index": at, **call}]})
    yield chunk({}, choice["finish_reason"])
    yield "", {**head, "choices": [], "usage": usage}


def _read_responses(body: _Json) -> _Request:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    roles = {"function_call": "assistant", "reasoning": "assistant"}
    turns = [
        (i.get("role") or roles.get(i.get("type", ""), "tool"), _text(i.get("content")))
        for i in items
    ]
    return _request(body, body.get("instructions") or "", turns)


def _response(name: str, said: Answer) -> _Json:
    output: list[_Json] = []
    if said.content or not said.tool_calls:
        text = {"type": "output_text", "text": said.content, "annotations": [], "logprobs": []}
        output.append(
            {
                "type": "message",
                "id": f"msg_{name}",
                "role": "assistant",
                "status": "completed",
                "content": [text],
            }
        )
    output += [
        {
            "type": "function_call",
            "id": f"fc_{name}.{at}",
            "call_id": c.id,
            "name": c.name,
            "arguments": c.arguments,
            "status": "completed",
        }
        for at, c in enumerate(said.tool_calls)
    ]
    usage = {
        "input_tokens": said.usage.input_tokens,
        "input_tokens_details": {"cached_tokens": said.usage.cached_input_tokens},
        "output_tokens": said.usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": said.usage.reasoning_tokens},
        "total_tokens": said.usage.total_tokens,
    }
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


def _response_events(whole: _Json) -> Iterator[_Event]:
    numbers = itertools.count()

    def event(kind: str, **data: Any) -> _Event:
        name = f"response.{kind}"
        return name, {"type": name, "sequence_number": next(numbers), **data}

    yield event("created", response={**whole, "status": "in_progress", "output": []})
    for at, item in enumerate(whole["output"]):
        here = {"output_index": at, "item_id": item["id"], "content_index": 0}
        empty: _Json = {"content": []} if "content" in item else {"arguments": ""}
        yield event("output_item.added", output_index=at, item={**item, **empty})
        for part in item.get("content", ()):
            yield event("content_part.added", **here, part={**part, "text": ""})
            for piece in _pieces(part["text"]):
                yield event("output_text.delta", **here, delta=piece, logprobs=[])
            yield event("output_text.done", **here, text=part["text"], logprobs=[])
        yield event("output_item.done", output_index=at, item=item)
    yield event("completed", response=whole)


def _read_messages(body: _Json) -> _Request:
    turns = [(m["role"], _text(m["content"])) for m in body["messages"]]
    return _request(body, _text(body.get("system")), turns)


def _message(name: str, said: Answer) -> _Json:
    content: list[_Json] = [{"type": "text", "text": said.content}] if said.content else []
    content += [
        {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads(c.arguments)}
        for c in said.tool_calls
    ]
    ends = {"tool_calls": "tool_use", "length": "max_tokens"}
    usage = {
        "input_tokens": said.usage.input_tokens - said.usage.cached_input_tokens,
        "cache_read_input_tokens": said.usage.cached_input_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": said.usage.output_tokens,
    }
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": ends.get(said.finish_reason, "end_turn"),
        "stop_sequence": None,
        "usage": usage,
    }


def _message_events(whole: _Json) -> Iterator[_Event]:
    def event(kind: str, **data: Any) -> _Event:
        return kind, {"type": kind, **data}

    begun = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**whole["usage"], "output_tokens": 1},
    }
    yield event("message_start", message=begun)
    for at, block in enumerate(whole["content"]):
        text = block["type"] == "text"
        yield event(
            "content_block_start",
            index=at,
            content_block={**block, **({"text": ""} if text else {"input": {}})},
        )
        for piece in _pieces(block["text"]) if text else [json.dumps(block["input"])]:
            delta = (
                {"type": "text_delta", "text": piece}
                if text
                else {"type": "input_json_delta", "partial_json": piece}
            )
            yield event("content_block_delta", index=at, delta=delta)
        yield event("content_block_stop", index=at)
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=end, usage=whole["usage"])
    yield event("message_stop")


_DIALECTS: Mapping[str, _Dialect] = {
    "/chat/completions": _Dialect(_read_chat, _chat, _chat_events, b"data: [DONE]\n\n"),
    "/responses": _Dialect(_read_responses, _response, _response_events),
    "/messages": _Dialect(_read_messages, _message, _message_events),
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
