"""Judges a batch after a chaos run, by the server's log and the outbox alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from books import perhaps_paid

from batchd import formats

#: A conversation up to an answer: the task's prompt, and how many answers it holds already.
Prefix = tuple[str, int]


@dataclass(frozen=True)
class Figures:
    """What a run came to."""

    results: int
    statuses: Mapping[str, int]
    #: Answers on record.
    calls: int
    #: Calls that may have been paid without an answer on record.
    unsettled: int
    #: That reached the server, and those for a prefix that it had been asked for before.
    requests: int
    repeated: int
    #: Commands that were found running, and were not run again.
    interrupted: int

    def __str__(self) -> str:
        return (
            f"{self.results} results {dict(self.statuses)}, {self.calls} calls on record,"
            f" {self.unsettled} unsettled; server: {self.requests} requests,"
            f" {self.repeated} for what it had been asked before; {self.interrupted} commands interrupted"
        )


def judge(folder: Path, log: Sequence[Mapping[str, Any]], count: int) -> Figures:
    """Hold a batch of ``count`` tasks to everything that is promised; return its figures."""
    results = [json.loads(text) for text in _whole(folder, count)]
    requests = Counter((entry["prompt"], entry["turn"]) for entry in log)
    interrupted = 0
    for result in results:
        events = [json.loads(x) for x in (folder / result["transcript"]).read_text().splitlines()]
        _paid_once(result, events, requests)
        interrupted += _run_once(folder / result["task"], events)
    _never_back(log)
    return Figures(
        results=len(results),
        statuses=Counter(r["status"] for r in results),
        calls=sum(r["usage"]["calls"] for r in results),
        unsettled=sum(r["usage"]["unsettled_calls"] for r in results),
        requests=len(log),
        repeated=sum(requests.values()) - len(requests),
        interrupted=interrupted,
    )


def _whole(folder: Path, count: int) -> list[str]:
    """Return the results' texts: each once and whole,
    and the other files of the batch agree with them.
    """
    names = [f"{i:03}" for i in range(1, count + 1)]
    expected = {"request.json", "results.jsonl", "report.html", "summary.json"}
    expected |= {f"{name}{end}" for name in names for end in ("", ".json", ".jsonl")}
    odd = {p.name for p in folder.iterdir()} ^ expected
    assert not odd, f"missing, or left over: {sorted(odd)[:20]}"
    texts = [(folder / f"{name}.json").read_text() for name in names]
    validator = jsonschema.Draft202012Validator(formats.schema("result"))
    results = [json.loads(text) for text in texts]
    for name, result in zip(names, results, strict=True):
        validator.validate(result)
        assert result["task"] == name
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == results, "results.jsonl differs"
    summary = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(summary, formats.schema("summary"))
    statuses = Counter(r["status"] for r in results)
    assert {k: v for k, v in summary["counts"].items() if v} == statuses, summary["counts"]
    for field in ("calls", "unsettled_calls", "input_tokens", "output_tokens"):
        assert summary["usage"][field] == sum(r["usage"][field] for r in results), field
    return texts


def _paid_once(
    result: Mapping[str, Any], events: Sequence[Mapping[str, Any]], requests: Mapping[Prefix, int]
) -> None:
    """Each request of this task beyond the one
    that was answered is a call that it counts as unsettled.
    """
    prompt, answers, again = result["first_prompt"], 0, 0
    started: Counter[int] = Counter()
    free: Counter[int] = Counter()
    for event in events:
        match event["event"]:
            case "CallStarted":
                started[answers] += 1
            case "CallAnswered":
                answers += 1
            case "CallFailed" if not perhaps_paid(event["failure"]):
                free[answers] += 1
    for turn in range(answers):
        asked, excused = requests[prompt, turn], started[turn] - 1
        assert 1 <= asked <= 1 + excused, (
            f"{result['task']}, answer {turn + 1}: asked for {asked} times, {excused} begun in vain"
        )
        again += excused - free[turn]
    # What was begun behind the last answer never got one.
    again += started[answers] - free[answers]
    assert requests[prompt, answers] <= started[answers], f"{result['task']}: more than was granted"
    assert again == result["usage"]["unsettled_calls"], f"{result['task']}: {again} begun in vain"
    assert answers == result["usage"]["calls"]


def _run_once(directory: Path, events: Sequence[Mapping[str, Any]]) -> int:
    """No command of the journal ran twice, each that ended ran;
    return how many were interrupted.
    """
    notes = directory / "notes.txt"
    lines = Counter(notes.read_text().split() if notes.exists() else [])
    interrupted = 0
    for event in events:
        if event["event"] != "ToolRan" or "notes.txt" not in event["call"]["arguments"]:
            continue
        number = json.loads(event["call"]["arguments"])["command"].split()[1]
        cut = event["outcome"] == "interrupted"
        interrupted += cut
        once = {1} if event["exit_code"] == 0 else {0, 1}
        assert lines.pop(number, 0) in once, f"{directory.name}: command {number} of {notes}"
    assert not lines, f"{directory.name}: commands {lines} that no journal knows of"
    return interrupted


def _never_back(log: Sequence[Mapping[str, Any]]) -> None:
    """No task ever asks for an answer that it has gone beyond:
    by the order of the server's log alone.
    """
    furthest: dict[str, int] = {}
    for entry in log:
        before = furthest.get(entry["prompt"], 0)
        assert entry["turn"] >= before, f"{entry['prompt']!r} asks again for answer {entry['turn']}"
        furthest[entry["prompt"]] = entry["turn"]
