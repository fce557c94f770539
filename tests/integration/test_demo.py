"""What ``batchd demo`` plays: the replay server, and how its recordings are made."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from standin.record import recording, save

from batchd.demo import recordings
from batchd.demo.recordings import Recording
from batchd.events import CallAnswered, Event, TaskStarted, Terms
from batchd.records import Answer, ModelSetup, Purpose, Usage

PROMPT = "Write FizzBuzz, please."
COMMAND = "seq 15\necho FizzBuzz"
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}}


def answered(content: str, purpose: Purpose = Purpose.AGENT, tokens: int = 7) -> CallAnswered:
    """Return an answer as a journal has it."""
    usage = Usage(calls=1, input_tokens=100, cached_input_tokens=60, output_tokens=tokens)
    answer = Answer(content=content, usage=usage)
    return CallAnswered(at=1.0, purpose=purpose, answer=answer, text_protocol=True)


@pytest.fixture
def recorded(tmp_path: Path) -> Recording:
    """A task that a judge refused once, recorded from its journal, and read again."""
    real = ModelSetup(name="local/real")
    terms = Terms(model=real, judge=real)
    no, yes = ('{"done": false, "feedback": "line 15"}', '{"done": true, "feedback": ""}')
    events: list[Event] = [
        TaskStarted(at=0.0, terms=terms),
        answered(f"First this:\n```bash\n{COMMAND}\n```"),
        answered(no, Purpose.JUDGE),
        answered("It says FizzBuzz now."),
        answered(yes, Purpose.JUDGE),
    ]
    save(tmp_path, recording(PROMPT, events))
    (found,) = recordings.load(tmp_path)
    return found


@contextlib.contextmanager
def replaying(folder: Path) -> Iterator[str]:
    """Run the replay server; its base URL."""
    command = [sys.executable, "-m", "batchd.demo.replay", "--recordings", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def ours(url: str) -> openai.OpenAI:
    """Return OpenAI's client of the server."""
    return openai.OpenAI(base_url=url, api_key="none")


def theirs(url: str) -> anthropic.Anthropic:
    """Return Anthropic's."""
    return anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none")


def chat(client: Any, turns: list[dict[str, str]], system: str, tools: bool, stream: bool) -> Any:
    """Ask over chat completions; return text and commands of the answer, and its tokens."""
    more: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "shell", "parameters": SCHEMA}}]} if tools else {}  # fmt: skip
    messages: Any = [{"role": "system", "content": system}, *turns]
    if stream:
        options = {"include_usage": True}
        with client.chat.completions.stream(model="demo", messages=messages, stream_options=options, **more) as events:  # fmt: skip
            whole: Any = events.get_final_completion()
    else:
        whole = client.chat.completions.create(model="demo", messages=messages, **more)
    said = whole.choices[0].message
    calls = [json.loads(c.function.arguments) for c in said.tool_calls or ()]
    return said.content, calls, (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def responses(
    client: Any, turns: list[dict[str, str]], system: str, tools: bool, stream: bool
) -> Any:
    """Ask over OpenAI's Responses."""
    more: dict[str, Any] = {"tools": [{"type": "function", "name": "shell", "parameters": SCHEMA, "strict": False}]} if tools else {}  # fmt: skip
    asked: Any = {"model": "demo", "input": turns, "instructions": system, **more}
    if stream:
        with client.responses.stream(**asked) as events:
            whole: Any = events.get_final_response()
    else:
        whole = client.responses.create(**asked)
    calls = [json.loads(i.arguments) for i in whole.output if i.type == "function_call"]
    return whole.output_text, calls, (whole.usage.input_tokens, whole.usage.output_tokens)


def messages(
    client: Any, turns: list[dict[str, str]], system: str, tools: bool, stream: bool
) -> Any:
    """Ask over Anthropic's Messages."""
    more: dict[str, Any] = {"tools": [{"name": "Bash", "input_schema": SCHEMA}]} if tools else {}
    asked: Any = {"model": "demo", "max_tokens": 99, "messages": turns, "system": system, **more}
    if stream:
        with client.messages.stream(**asked) as events:
            whole: Any = events.get_final_message()
    else:
        whole = client.messages.create(**asked)
    text = "".join(b.text for b in whole.content if b.type == "text")
    calls = [b.input for b in whole.content if b.type == "tool_use"]
    used = whole.usage
    return text, calls, (used.input_tokens + used.cache_read_input_tokens, used.output_tokens)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("ask", [chat, responses, messages])
def test_a_recording_is_replayed_in_every_dialect(
    tmp_path: Path, recorded: Recording, ask: Any, stream: bool
) -> None:
    """By the prompt, which the first message quotes, and by the answers that a request holds: as
    text, or as a call where a tool takes commands. A judge reads the verdict of that point.
    """
    first = {"role": "user", "content": f"[Files: a.py]\n{PROMPT}"}
    later = [first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "[done]"}]
    judge = [{"role": "user", "content": f"# Task\n{PROMPT}\n# Answer\nx"}]
    client = theirs if ask is messages else ours
    with replaying(tmp_path) as url, client(url) as at:
        text, calls, used = ask(at, [first], "You work.", False, stream)
        assert (text, calls) == (recorded.answers[0].content, [])
        assert used == (100, 7)
        text, calls, _ = ask(at, [first], "You work.", True, stream)
        assert (text, calls) == ("First this:", [{"command": COMMAND}])
        verdict, _, _ = ask(at, judge, "You judge work.", False, stream)
        assert json.loads(verdict) == {"done": False, "feedback": "line 15"}
        text, calls, _ = ask(at, later, "You work.", True, stream)
        assert (text, calls) == ("It says FizzBuzz now.", [])
        verdict, _, _ = ask(at, judge, "You judge work.", False, stream)
        assert json.loads(verdict)["done"]
        text, _, _ = ask(at, [{"role": "user", "content": "Build a ship"}], "", False, stream)
        assert "has none for this prompt" in text


def test_what_is_no_request_is_refused(tmp_path: Path, recorded: Recording) -> None:
    """With status 400 and a reason; the server goes on."""
    with replaying(tmp_path) as url, ours(url) as client:
        with pytest.raises(openai.BadRequestError, match="not a request"):
            client.chat.completions.create(model="demo", messages=7)  # type: ignore[arg-type]
        assert [m.id for m in client.models.list()] == ["demo"]
