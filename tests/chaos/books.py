"""Holds what lies in the outbox against what the model servers logged:
pure, on data that was read before.

Every check returns its complaints as texts, none where all is well:
a run reports all that it found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What a published text of JSON is, and an event, and an exchange of a server's log.
Json = Mapping[str, Any]
#: Two sums of money are the same: they are rounded to a billionth of a dollar, result by result.
_CENT = 2e-9


@dataclass(frozen=True)
class Promise:
    """What may become of a task."""

    #: ``completed``, or a status with its reason: ``timeout/budget``.
    ends: frozenset[str]
    #: Dollars that it may spend; 0: no limit.
    max_usd: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A result as it was published, with its transcript's events."""

    result: Json
    events: Sequence[Json]

    @property
    def name(self) -> str:
        """Its batch and task."""
        return f"{self.result['batch']}/{self.result['task']}"

    @property
    def end(self) -> str:
        """How it ended, as promises call it."""
        reason = self.result["reason"]
        return self.result["status"] + (f"/{reason}" if reason else "")

    @property
    def spent_usd(self) -> float:
        """What it may have cost at most."""
        cost = self.result["cost"]
        return float((cost["total"] or 0) + (cost["unsettled"] or 0))


def perhaps_paid(failure: Json) -> bool:
    """Return whether a failed call may have been paid:
    it was sent, and what came back says nothing.
    """
    return failure["sent"] and failure["kind"] in {"timeout", "connection", "bad_answer"}


class _Calls:
    """The calls of one prompt's tasks, by the number of answers before them."""

    def __init__(self, those: Iterable[Outcome]) -> None:
        self.started: Counter[int] = Counter()
        self.answers: dict[int, list[Json]] = {}
        #: Failed for certain: nothing was sent, or the server refused it.
        self.free: Counter[int] = Counter()
        for outcome in those:
            turn = 0
            for event in outcome.events:
                match event["event"]:
                    case "CallStarted":
                        self.started[turn] += 1
                    case "CallAnswered":
                        self.answers.setdefault(turn, []).append(event["answer"]["usage"])
                        turn += 1
                    case "CallFailed" if not perhaps_paid(event["failure"]):
                        self.free[turn] += 1

    @property
    def unsettled(self) -> int:
        """How many may have been paid without an answer on record."""
        answered = sum(map(len, self.answers.values()))
        return self.started.total() - answered - self.free.total()


def settled(prompt: str, those: Sequence[Outcome], log: Sequence[Json]) -> Iterator[str]:
    """Every request of a prompt was granted, every answer on record was given,
    each paid one is on record or unsettled.
    """
    calls = _Calls(those)
    where = f"{prompt!r} ({', '.join(t.name for t in those)})"
    asked = Counter(entry["turn"] for entry in log)
    for turn in sorted(asked.keys() | calls.started.keys()):
        given = [_tokens(e["usage"]) for e in log if e["turn"] == turn and e["usage"]]
        started, free = calls.started[turn], calls.free[turn]
        if asked[turn] > started:
            yield f"{where}: answer {turn + 1} was asked for {asked[turn]} times, and {started} calls are on record"
        elif len(given) > started - free:
            yield f"{where}: answer {turn + 1} was given {len(given)} times, and {started - free} calls may have been paid"
        recorded = Counter(_tokens(usage) for usage in calls.answers.get(turn, ()))
        if made_up := recorded - Counter(given):
            yield f"{where}: answers {turn + 1} of {dict(made_up)} tokens are in no server's log"
    unsettled = sum(t.result["usage"]["unsettled_calls"] for t in those)
    if unsettled != calls.unsettled:
        yield f"{where}: {calls.unsettled} calls were begun in vain, and {unsettled} are reported as unsettled"
    if len(those) == 1:
        yield from _never_back(where, log)


def _never_back(where: str, log: Sequence[Json]) -> Iterator[str]:
    """No task asks for an answer that it has gone beyond,
    by the order of the server's log alone.
    """
    furthest = 0
    for entry in sorted(log, key=lambda e: e["at"]):
        if entry["turn"] < furthest:
            yield f"{where}: asks for answer {entry['turn'] + 1} again after answer {furthest}"
            return
        furthest = entry["turn"]


def _tokens(usage: Json) -> tuple[int, int, int]:
    return usage["input_tokens"], usage["cached_input_tokens"], usage["output_tokens"]


def money(outcome: Outcome, price: tuple[float, float]) -> Iterator[str]:
    """A result's tokens and dollars are the sums of its answers',
    what is unsettled at most what was set aside.
    """
    usages = [e["answer"]["usage"] for e in outcome.events if e["event"] == "CallAnswered"]
    usage, cost = outcome.result["usage"], outcome.result["cost"]
    sums = {k: sum(u[k] for u in usages) for k in ("calls", "input_tokens", "output_tokens")}
    for key, value in sums.items():
        if usage[key] != value:
            yield f"{outcome.name}: {key} is {usage[key]}, its answers have {value}"
    dollars = (sums["input_tokens"] * price[0] + sums["output_tokens"] * price[1]) / 1e6
    if usages and abs(cost["total"] - dollars) > _CENT:
        yield f"{outcome.name}: cost is ${cost['total']}, its tokens are worth ${dollars}"
    aside = sum(e["reserved_usd"] or 0.0 for e in outcome.events if e["event"] == "CallStarted")
    if (cost["unsettled"] or 0) > aside + _CENT:
        yield f"{outcome.name}: ${cost['unsettled']} are unsettled, ${aside} were set aside"


def kept(outcome: Outcome, promise: Promise) -> Iterator[str]:
    """It ended as it may, and within its money."""
    allowed = set(promise.ends)
    if any(e["event"] == "CallFailed" for e in outcome.events):
        allowed.add("error/provider_unavailable")
    if outcome.end not in allowed:
        error = outcome.result["error"] or {}
        yield f"{outcome.name}: ended as {outcome.end}, may as {sorted(allowed)}: {error.get('message')}"
    if promise.max_usd and outcome.spent_usd > promise.max_usd + _CENT:
        yield f"{outcome.name}: ${outcome.spent_usd} of ${promise.max_usd} were spent"


def whole(summary: Json, results: Sequence[Json], lines: str, ids: Sequence[str]) -> Iterator[str]:
    """A batch has each of its tasks once, and its files agree with each other."""
    where = summary["batch"]
    if (found := sorted(r["task"] for r in results)) != sorted(ids):
        yield f"{where}: has the results {found}, its tasks are {sorted(ids)}"
    by_task = {json.loads(line)["task"]: json.loads(line) for line in lines.splitlines()}
    if len(lines.splitlines()) != len(results) or by_task != {r["task"]: r for r in results}:
        yield f"{where}: results.jsonl differs from the results"
    statuses = Counter(r["status"] for r in results)
    if {k: v for k, v in summary["counts"].items() if v} != statuses:
        yield f"{where}: summary counts {summary['counts']}, results are {dict(statuses)}"
    for field in ("calls", "unsettled_calls", "input_tokens", "output_tokens"):
        total = sum(r["usage"][field] for r in results)
        if summary["usage"][field] != total:
            yield f"{where}: summary has {field} {summary['usage'][field]}, results have {total}"


def commands(outcome: Outcome, notes: str) -> Iterator[str]:
    """No command of a journal ran twice, and each that ended ran, by the lines that they left.

    One that was cut off, as a task's end is, has left what it did and no event of its own:
    its answer asked for it.
    """
    lines = Counter(notes.split())
    asked = {
        json.loads(call["arguments"])["command"].split()[1]
        for event in outcome.events
        if event["event"] == "CallAnswered"
        for call in event["answer"]["tool_calls"]
        if "notes.txt" in call["arguments"]
    }
    for event in outcome.events:
        if event["event"] == "ToolRan" and "notes.txt" in event["call"]["arguments"]:
            number = json.loads(event["call"]["arguments"])["command"].split()[1]
            times = lines.pop(number, 0)
            if times > 1 or (times == 0 and event["exit_code"] == 0):
                yield f"{outcome.name}: command {number} ran {times} times"
    for number, times in lines.items():
        if times > 1 or number not in asked or outcome.end == "completed":
            yield f"{outcome.name}: no journal knows of the command {number}, which ran {times} times"


def orders_done(batch: str, made: int, done: int, unsure: int) -> Iterator[str]:
    """As many batches were made by ``retry`` as were acknowledged,
    or at most those given up on top.
    """
    if not done <= made <= done + unsure:
        yield f"{batch}: was run again {made} times, {done} were acknowledged and {unsure} given up"


def day(date: str, spent_usd: float, limit_usd: float) -> Iterator[str]:
    """A day costs what it may, by the servers' logs."""
    if spent_usd > limit_usd + _CENT:
        yield f"{date}: ${spent_usd:.6f} of ${limit_usd} were spent, by the servers' logs"
