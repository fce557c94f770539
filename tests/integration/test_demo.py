"""What ``batchd demo`` plays: the replay server, and how its recordings are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from standin.record import recording, save

from batchd.demo import recordings, replay
from batchd.demo.recordings import Recording
from batchd.events import CallAnswered, Event, TaskStarted, Terms
from batchd.records import Answer, ModelSetup, Purpose, Usage

PROMPT = "Write FizzBuzz, please."
COMMAND = "seq 15\necho FizzBuzz"


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


def ours(url: str) -> openai.OpenAI:
    """Return OpenAI's client of the server."""
    return openai.OpenAI(base_url=url, api_key="none")


def test_a_recording_is_replayed(tmp_path: Path, recorded: Recording) -> None:
    """By the prompt, which the first message quotes, and by the answers that a request holds.
    A judge reads the verdict of that point.
    """
    first = {"role": "user", "content": f"[Files: a.py]\n{PROMPT}"}
    later = [first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "[done]"}]
    judge = [{"role": "user", "content": f"# Task\n{PROMPT}\n# Answer\nx"}]
    with replay.serving(0.0, folder=tmp_path) as url, ours(url) as client:

        def ask(turns: list[dict[str, str]], system: str = "You work.") -> tuple[str, int, int]:
            said: Any = [{"role": "system", "content": system}, *turns]
            whole = client.chat.completions.create(model="demo", messages=said)
            used = whole.usage
            assert used is not None
            return (
                whole.choices[0].message.content or "",
                used.prompt_tokens,
                used.completion_tokens,
            )

        assert ask([first]) == (recorded.answers[0].content, 100, 7)
        assert json.loads(ask(judge, "You judge work.")[0]) == {
            "done": False,
            "feedback": "line 15",
        }
        assert ask(later)[0] == "It says FizzBuzz now."
        assert json.loads(ask(judge, "You judge work.")[0])["done"]
        assert "has none for this prompt" in ask([{"role": "user", "content": "Build a ship"}])[0]


def test_what_is_no_request_is_refused(tmp_path: Path, recorded: Recording) -> None:
    """With status 400 and a reason; the server goes on."""
    with replay.serving(0.0, folder=tmp_path) as url, ours(url) as client:
        with pytest.raises(openai.BadRequestError, match="not a request"):
            client.chat.completions.create(model="demo", messages=7)  # type: ignore[arg-type]
        assert [m.id for m in client.models.list()] == ["demo"]
