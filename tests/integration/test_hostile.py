"""Answers that no sane model gives, over the whole way:
each task ends with its own status, and none hurts those beside it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S
from replacing import replace

from batchd import events
from batchd.llm.answer import MAX_TEXT_CHARS
from batchd.records import ToolCall
from tests.integration.test_agent import Scene, scene, task

pytestmark = pytest.mark.in_turns

_MB = 1 << 20
_CALL = '{"name": "shell", "arguments": {"command": "echo hi"}}'
_DONE = {"content": "Done."}
_YES = {"content": '{"done": true, "feedback": null}'}


def _tool(arguments: Any, name: Any = "shell", number: int = 0) -> dict[str, Any]:
    return {
        "id": f"c{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _calls(*calls: Mapping[str, Any], content: Any = None) -> dict[str, Any]:
    return {"content": content, "tool_calls": list(calls)}


#: What a model says first, by its name; then it is done.
HOSTILE: Mapping[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"content": None, "tool_calls": None},
    "numbers": {"content": [1, None, {"type": "text", "text": 5}, "x"]},
    "both": _calls(_tool('{"command": "echo hi"}'), content=f"I call. {_CALL}\n```bash\nls\n```"),
    "long": {"content": "a" * 10 * _MB},
    "blank": {"content": " " * 10 * _MB},
    "fences": {"content": "```bash\n" * 100_000},
    "closed-fences": {"content": "  ```\n" * 300_000 + "x"},
    "objects": {"content": _CALL * 100_000},
    "list": {"content": f"[{','.join([_CALL] * 20_000)}]"},
    "brackets": {"content": "[" * 5 * _MB},
    "thinking": {"content": "<think>" + "hm " * 2 * _MB, "reasoning_content": "hm " * 2 * _MB},
    "deep": _calls(_tool('{"command":' + "[" * 100_000 + "]" * 100_000 + "}")),
    "deep-object": _calls(_tool({"command": json.loads("[" * 900 + "]" * 900)})),
    "numerous": _calls(*(_tool("{", number=i) for i in range(20_000))),
    "no-name": _calls(_tool("{}", name=None), {"id": None}, {"function": None}),
    "long-name": _calls(_tool("{}", name="x" * 2 * _MB)),
    "long-id": _calls({**_tool('{"command": "echo hi"}'), "id": "x" * 2 * _MB}),
    "many-keys": _calls(_tool(json.dumps({f"k{i}": i for i in range(50_000)}))),
    "many-numbers": _calls(_tool('{"command": [' + "1," * 400_000 + "1]}")),
    "long-command": _calls(_tool(json.dumps({"command": "echo " + "y" * 3 * _MB}))),
    "list-arguments": _calls(_tool([1, 2]), _tool("null", number=1), _tool("7", number=2)),
    "flood": _calls(_tool('{"command": "yes | head -c 30000000"}')),
}
#: What a judge says, and how its task ends.
JUDGES: Mapping[str, tuple[dict[str, Any], str, str | None]] = {
    "judge-null": (_YES, "completed", None),
    "judge-number": ({"content": '{"done": true, "feedback": 7}'}, "completed", None),
    "judge-string": ({"content": '{"done": "true"}'}, "error", "evaluator"),
    "judge-list": ({"content": '[{"done": true}]'}, "error", "evaluator"),
    "judge-deep": (
        {"content": '{"done": true, "feedback": ' + "[" * 100_000},
        "error",
        "evaluator",
    ),
    "judge-silent": ({"content": None}, "error", "evaluator"),
    "judge-call": (_calls(_tool("{}")), "error", "evaluator"),
    "judge-long": (
        {"content": '{"done": false, "feedback": "' + "no " * _MB},
        "error",
        "evaluator",
    ),
    "judge-no": ({"content": '{"done": false, "feedback": null}'}, "timeout", "max_iterations"),
}


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    model = asked["model"]
    said = sum(m["role"] == "assistant" for m in asked["messages"])
    if "response_format" in asked:
        message = JUDGES[model][0]
    elif model.startswith("steps") and said < int(model[5:]):
        message = _calls(_tool(json.dumps({"command": f"echo {said}"}), number=said))
    else:
        message = _DONE if said else HOSTILE.get(model, _DONE)
    usage = {} if "no-usage" in model else {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(_answer(asked)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hostile() -> Iterator[str]:
    """Serve the answers above; the base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


_CONFIG = """\
[agent]
model = "p/steps3"
[providers.p]
base_url = "{base_url}"
tools = "{tools}"
[pool]
processes = 1
agents_per_process = 40
[governor]
first_backoff_s = 0.05
max_retries = 1
[limits]
max_iterations = 2
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("tools", ["auto", "text"])
def test_every_task_ends_with_the_right_status_and_its_tokens(
    spool: Any, hostile: str, tools: str
) -> None:
    """Whatever a model or a judge says, in one process with others:
    a typed end at the first attempt, each call counted.
    """
    (spool.folder / "config.toml").write_text(_CONFIG.format(base_url=hostile, tools=tools))
    tasks = [
        {"id": name, "first_prompt": "x", "model": f"p/{name}", "evaluator": "none"}
        for name in [*HOSTILE, "steps20"]
    ]
    judged = [
        {"id": name, "first_prompt": "x", "model": f"p/{name}", "evaluator": "judge"}
        for name in JUDGES
    ]
    done = subprocess.run(
        spool.command("run", spool.write("job.json", [*tasks, *judged])),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env=spool.environment,
        cwd=spool.folder,
    )
    assert done.returncode == 1, done.stderr
    for job in tasks:
        result = spool.result("job", job["id"])
        reasons = {None, "loop"} if job["id"] in {"numerous", "objects", "list"} else {None}
        assert result["reason"] in reasons, (job["id"], result["error"])
    for job in judged:
        result = spool.result("job", job["id"])
        _, status, reason = JUDGES[job["id"]]
        assert (result["status"], result["reason"]) == (status, reason), (
            job["id"],
            result["error"],
        )
    for job in [*tasks, *judged]:
        result = spool.result("job", job["id"])
        usage = result["usage"]
        assert result["attempts"] == 1, job["id"]
        assert usage["calls"] > 0
        assert (usage["input_tokens"], usage["output_tokens"]) == (
            100 * usage["calls"],
            10 * usage["calls"],
        )
        assert len(json.dumps(result)) < 8 * MAX_TEXT_CHARS


def test_others_get_their_turn_between_any_two_steps(tmp_path: Path) -> None:
    """Steps that wait for nothing, such as refused calls of tools,
    may be a hundred in a row: the loop turns between them.
    """
    turns, since, most = [0], [0, 0], [0]

    async def play(scene: Scene) -> None:
        clock = scene.host.clock

        def counting() -> float:
            steps = since[1] + 1 if since[0] == turns[0] else 0
            since[:] = turns[0], steps
            most[0] = max(most[0], steps)
            return clock()

        async def turn() -> None:
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        job = task("steps-2")
        history = list((await scene.run(job)).events[:3])
        answered = history[-1]
        assert isinstance(answered, events.CallAnswered)
        refused = tuple(ToolCall(f"c{i}", f"t{i}", "{}") for i in range(100))
        answer = replace(answered.answer, tool_calls=refused)
        history[-1] = replace(answered, answer=answer, calls=refused)
        turning = asyncio.create_task(turn())
        scene.host.clock = counting  # type: ignore[method-assign] # the only thing that every step asks for
        ended = await scene.run(job, history)
        turning.cancel()
        assert ended.state.finished is not None
        assert sum(isinstance(e, events.ToolRan) for e in ended.events) == 100

    scene(tmp_path, play)
    assert most[0] <= 10
