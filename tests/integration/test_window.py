"""A model's window, over the whole way:
`batchd run` and the daemon against a server that counts every token.
"""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
tools = "{tools}"
[models."standin/steps-2"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 1
agents_per_process = 4
[governor]
first_backoff_s = 0.05
max_retries = 1
[evaluation]
by = "none"
"""


def configure(spool: Any, base_url: str, tools: str = "auto", more: str = "") -> None:
    """Write a configuration of one provider."""
    text = _CONFIG.format(base_url=base_url, tools=tools)
    (spool.folder / "config.toml").write_text(text + more)


def window(model: str, tokens: int) -> str:
    """Return the part of a configuration that gives a model's window."""
    return f'[models."standin/{model}"]\ncontext_window = {tokens}\n'


def totals(base_url: str) -> dict[str, Any]:
    """Return what the server has counted."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/totals") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def exchanges(log: Path, purpose: str | None = None) -> list[dict[str, Any]]:
    """Return what the server was asked, in order, and answered."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [e for e in lines if e["status"] == 200 and purpose in {None, e["purpose"]}]


def run(spool: Any, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run tasks to their end and return their results."""
    file = spool.write("job.json", tasks)
    done = spool.batchd("run", file)
    assert done.returncode in {0, 1}, done.stderr
    return [spool.result("job", task["id"]) for task in tasks]


def messages_of(body: str) -> tuple[str, str]:
    """Return a request's bytes up to the last message,
    and what comes behind them but for the limit on output.
    """
    found = re.match(r'(\{"model":"[^"]*","messages":\[.*)\],"max\w*":\d+(.*\})$', body, re.DOTALL)
    assert found, body[:300]
    return found.group(1), found.group(2)


def hold_prefixes(asked: Sequence[dict[str, Any]]) -> None:
    """Hold that each request begins with all of the one before,
    to the byte, and that the cache is hit.
    """
    for before, after in pairwise(asked):
        begun, behind = messages_of(before["request"])
        longer, end = messages_of(after["request"])
        assert longer.startswith(begun)
        assert len(longer) > len(begun)
        assert behind == end, "the tools stand behind the messages and stay the same"
        # All of the prompt before is read from the cache.
        assert after["usage"]["cached_input_tokens"] == before["usage"]["input_tokens"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("tools", "script"),
    [
        ("auto", "steps-12"),
        ("auto", "parallel-6"),
        ("auto", "bad-tool-json-2+steps-5"),
        ("auto", "length-2+unknown-tool-2+steps-4"),
        ("text", "steps-12"),
        ("text", "length-2+chatter-5"),
    ],
)
def test_each_request_begins_with_the_bytes_of_the_one_before(
    spool: Any, counting_server: tuple[str, Path], script: str, tools: str
) -> None:
    """The provider's prompt cache lives on it:
    native, in text, and with several calls an answer.
    """
    base_url, log = counting_server
    configure(spool, base_url, tools)
    (result,) = run(spool, [{"id": "t", "first_prompt": "do it", "model": f"standin/{script}"}])
    assert result["status"] == "completed"
    asked = exchanges(log, "agent")
    assert len(asked) == result["usage"]["calls"] > 5
    hold_prefixes(asked)
    cached = sum(e["usage"]["cached_input_tokens"] for e in asked)
    assert result["usage"]["cached_input_tokens"] == cached
    assert cached == sum(e["usage"]["input_tokens"] for e in asked[:-1])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("tools", ["auto", "text"])
def test_the_prefix_survives_a_kill(
    spool: Any, counting_server: tuple[str, Path], tools: str
) -> None:
    """The daemon is killed in the middle of a task:
    what its successor asks begins with the same bytes.
    """
    base_url, log = counting_server
    configure(spool, base_url, tools)
    model = "standin/latency-0.05+parallel-4+steps-20"
    task = [{"id": "t", "first_prompt": "do it", "model": model}]
    file = spool.write("job.json", task)
    with spool.serving() as daemon:
        assert spool.batchd("submit", file).returncode == 0
        spool.eventually(lambda: totals(base_url)["requests"] >= 8)
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    with spool.serving():
        spool.eventually((spool.folder / "outbox/job/summary.json").exists)
    result = spool.result("job", "t")
    assert (result["status"], result["attempts"]) == ("completed", 2)
    asked = exchanges(log, "agent")
    # The call in flight at the kill may have been asked for twice, with one and the same body.
    once = [e for e, after in pairwise([*asked, {"hash": ""}]) if e["hash"] != after["hash"]]
    assert len(asked) - len(once) <= 1
    assert len(once) == 24
    for before, after in pairwise(once):
        begun, behind = messages_of(before["request"])
        longer, end = messages_of(after["request"])
        assert behind == end
        assert longer.startswith(begun)


def test_a_task_of_many_windows_completes_and_its_summaries_are_accounted_for(
    spool: Any, counting_server: tuple[str, Path]
) -> None:
    """A window of 6,000 tokens, outputs of well over 100,000, and no request is ever refused."""
    base_url, log = counting_server
    model = "window-6000+flood-25+chatter-25"
    configure(spool, base_url, more=window(model, 6000))
    task = {"id": "t", "first_prompt": "do it", "model": f"standin/{model}"}
    (result,) = run(spool, [task])
    assert result["status"] == "completed", result["error"]
    by_purpose = result["usage"]["by_purpose"]
    assert by_purpose["agent"]["calls"] == 51
    assert by_purpose["compaction"]["calls"] == len(exchanges(log, "compaction")) > 0
    assert by_purpose["compaction"]["input_tokens"] == sum(
        e["usage"]["input_tokens"] for e in exchanges(log, "compaction")
    )
    assert max(e["usage"]["input_tokens"] for e in exchanges(log)) < 6000
    assert totals(base_url)["by_status"] == {"200": result["usage"]["calls"]}
    # The prefix holds between compactions, so that most of the input is read from the cache.
    usage = result["usage"]
    assert usage["cached_input_tokens"] > 0.5 * usage["input_tokens"]


def test_a_window_that_was_not_given_is_learned_and_kept(
    spool: Any, counting_server: tuple[str, Path]
) -> None:
    """The server's refusal names it:
    one is enough, the permit is given back, and the task completes.
    """
    base_url, _ = counting_server
    configure(spool, base_url)
    model = "window-6000+flood-20"
    tasks = [
        {"id": f"t{i}", "first_prompt": f"do {i}", "model": f"standin/{model}"} for i in range(3)
    ]
    results = run(spool, tasks)
    assert [r["status"] for r in results] == ["completed"] * 3, [r["error"] for r in results]
    assert totals(base_url)["by_status"]["400"] == 3
    assert all(r["usage"]["unsettled_calls"] == 0 for r in results)


def test_an_overflow_gives_its_permit_back(spool: Any, counting_server: tuple[str, Path]) -> None:
    """With one call at a time, a permit that is not given back would hold all others for ever."""
    base_url, _ = counting_server
    configure(spool, base_url)
    config = spool.folder / "config.toml"
    config.write_text(
        config.read_text().replace('tools = "auto"', 'tools = "auto"\nmax_concurrent = 1')
    )
    tasks = [
        {"id": f"t{i}", "first_prompt": f"do {i}", "model": f"standin/{model}"}
        for i, model in enumerate(
            ["context-overflow-1+steps-3", "llama-overflow-1+steps-3", "steps-3", "window-900"]
        )
    ]
    results = run(spool, tasks)
    assert [r["status"] for r in results[:3]] == ["completed"] * 3, [r["error"] for r in results]


def test_what_cannot_be_made_to_fit_ends_with_sizes_and_the_fix(
    spool: Any, counting_server: tuple[str, Path]
) -> None:
    """A prompt larger than the window, known beforehand
    or named by the server, is one clean error.
    """
    base_url, _ = counting_server
    known, unknown = "window-3000+steps-2", "window-2999+steps-2"
    configure(spool, base_url, more=window(known, 3000))
    prompt = "word " * 5000
    tasks = [
        {"id": "known", "first_prompt": prompt, "model": f"standin/{known}"},
        {"id": "named", "first_prompt": prompt, "model": f"standin/{unknown}"},
    ]
    for result, size in zip(run(spool, tasks), (3000, 2999), strict=True):
        assert (result["status"], result["error"]["type"]) == ("error", "context_overflow")
        message = result["error"]["message"]
        assert f"window of {size:,}" in message
        assert "5,4" in message, "what the prompts take"
        assert "first_prompt" in message
    assert totals(base_url)["requests"] == 1, "what is known not to fit is not sent"


def test_the_judge_fits_its_window_too(spool: Any, counting_server: tuple[str, Path]) -> None:
    """What it is shown is cut so that it and the verdict fit, and what it may answer is limited."""
    base_url, log = counting_server
    model = "window-4500+steps-60"
    configure(spool, base_url, more=window(model, 4500))
    prompt = "word " * 3300
    task = {"id": "t", "first_prompt": prompt, "model": f"standin/{model}", "evaluator": "judge"}
    (result,) = run(spool, [task])
    assert result["status"] == "completed", result["error"]
    (judged,) = exchanges(log, "judge")
    assert "cut out here" in judged["request"]
    assert "echo step 50" in judged["request"]
    assert 2500 < judged["usage"]["input_tokens"] < 4500 - 1000
    assert totals(base_url)["by_status"] == {"200": result["usage"]["calls"]}


def test_the_judges_window_is_learned_too(spool: Any, counting_server: tuple[str, Path]) -> None:
    """A refused judgement is asked for once more, in the window that the refusal named."""
    base_url, log = counting_server
    configure(spool, base_url)
    config = spool.folder / "config.toml"
    by = 'by = "judge"\njudge_model = "standin/window-4000+latency-0"'
    config.write_text(config.read_text().replace('by = "none"', by))
    prompt = "word " * 5000
    (result,) = run(spool, [{"id": "t", "first_prompt": prompt, "model": "standin/steps-3"}])
    (judged,) = exchanges(log, "judge")
    assert judged["usage"]["input_tokens"] < 4000
    assert totals(base_url)["by_status"]["400"] == 1
    assert result["iterations"] >= 1


def test_thinking_goes_back_with_the_calls_that_it_led_to(
    spool: Any, counting_server: tuple[str, Path]
) -> None:
    """DeepSeek refuses tool calls that come back without their thinking; compactions keep to it."""
    base_url, log = counting_server
    model = "reasoning+window-6000+parallel-10+chatter-10"
    configure(spool, base_url, more=window(model, 6000))
    (result,) = run(spool, [{"id": "t", "first_prompt": "x", "model": f"standin/{model}"}])
    assert result["status"] == "completed", result["error"]
    assert result["usage"]["by_purpose"]["compaction"]["calls"] > 0
    assert totals(base_url)["by_status"] == {"200": result["usage"]["calls"]}
    hold_prefixes(exchanges(log)[:4])


def test_windows_that_are_nearly_too_small_end_their_own_tasks_alone(
    spool: Any, counting_server: tuple[str, Path]
) -> None:
    """With 700 to 1,500 tokens a task completes or overflows;
    those beside it in its process never learn of it.
    """
    base_url, _ = counting_server
    models = [f"window-{n}+parallel-3+chatter-3" for n in range(700, 1501, 100)]
    more = "".join(window(model, int(model[7:].split("+")[0])) for model in models)
    configure(spool, base_url, more=more)
    small = [
        {"id": f"t{i}", "first_prompt": f"do {i}", "model": f"standin/{model}"}
        for i, model in enumerate(models)
    ]
    beside = {"id": "beside", "first_prompt": "x", "model": "standin/latency-0.5+steps-12"}
    *results, neighbour = run(spool, [*small, beside])
    ends = {(r["status"], r["reason"]) for r in results}
    assert ends == {("completed", None), ("error", "context_overflow")}
    assert neighbour["status"] == "completed"
    assert all(r["attempts"] == 1 for r in [*results, neighbour])
