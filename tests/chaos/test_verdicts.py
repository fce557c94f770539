"""The judge of storms on made-up outboxes and logs:
it finds what it is for, and nothing where all is well.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

import books
import pytest
from books import Outcome, Promise
from progress import INBOX, Hindrance, Journal, Patience, could_move

_PRICE = (1.0, 2.0)
_USAGE = {"input_tokens": 100, "cached_input_tokens": 40, "output_tokens": 10}
_SPENT = {"calls": 1, **_USAGE}
_DONE = Promise(frozenset({"completed"}))


def _started() -> dict[str, Any]:
    return {"event": "CallStarted", "reserved_usd": 0.01}


def _answered() -> dict[str, Any]:
    return {"event": "CallAnswered", "answer": {"usage": dict(_SPENT)}}


def _failed(kind: str) -> dict[str, Any]:
    return {"event": "CallFailed", "failure": {"kind": kind, "sent": True}}


def _ran(number: int, exit_code: int | None = 0) -> dict[str, Any]:
    arguments = json.dumps({"command": f"echo {number} >> notes.txt"})
    return {"event": "ToolRan", "call": {"arguments": arguments}, "exit_code": exit_code}


def _outcome(events: Iterable[dict[str, Any]], unsettled: int = 0, **more: Any) -> Outcome:
    events = list(events)
    answers = sum(e["event"] == "CallAnswered" for e in events)
    usage = {k: v * answers for k, v in _SPENT.items()} | {"unsettled_calls": unsettled}
    result = {
        "batch": "b",
        "task": "001",
        "status": "completed",
        "reason": None,
        "error": None,
        "usage": usage,
        "cost": {"total": answers * 120e-6, "unsettled": unsettled * 0.01},
        **more,
    }
    return Outcome(result, events)


def _asked(*turns: int, status: int = 200) -> Iterator[dict[str, Any]]:
    for at, turn in enumerate(turns):
        usage = _USAGE if status == 200 else None
        yield {"at": at, "turn": turn, "status": status, "usage": usage}


#: Two answers, as they should be; one more call that was cut off, and one that was refused.
_TWO = [_started(), _answered(), _started(), _answered()]
_CUT = [_started(), _failed("connection"), *_TWO]
_REFUSED = [_started(), _failed("rate_limited"), *_TWO]


@pytest.mark.parametrize(
    ("outcome", "log"),
    [
        (_outcome(_TWO), _asked(0, 1)),
        (_outcome(_CUT, unsettled=1), _asked(0, 0, 1)),
        # Cut off before it reached the server: it may have been paid all the same.
        (_outcome(_CUT, unsettled=1), _asked(0, 1)),
        (_outcome(_REFUSED), [*_asked(0, status=429), *_asked(0, 1)]),
        # Killed after the call began, and never gone on.
        (_outcome([*_TWO, _started()], unsettled=1), _asked(0, 1, 2)),
        (_outcome([]), []),
    ],
)
def test_sound_books_have_no_complaints(outcome: Outcome, log: Iterable[Any]) -> None:
    """What was granted, asked, answered and recorded agree, calls in flight apart."""
    assert [*books.settled("p", [outcome], [*log])] == []
    assert [*books.money(outcome, _PRICE)] == []


@pytest.mark.parametrize(
    ("outcome", "log", "complaint"),
    [
        (_outcome(_TWO), _asked(0, 0, 1), "asked for 2 times"),
        (_outcome(_TWO), _asked(0, 1, 2), "answer 3 was asked for 1 times, and 0 calls"),
        # A refused call was answered after all: that was paid, and is not counted.
        (_outcome(_REFUSED), _asked(0, 0, 1), "given 2 times, and 1 calls"),
        (_outcome(_TWO), _asked(0), "in no server's log"),
        (_outcome(_CUT), _asked(0, 0, 1), "1 calls were begun in vain, and 0"),
        (_outcome(_TWO, unsettled=1), _asked(0, 1), "0 calls were begun in vain, and 1"),
        (_outcome([_started(), *_TWO], unsettled=1), _asked(0, 1, 0), "again after answer 1"),
    ],
)
def test_calls_that_are_paid_twice_or_made_up_are_found(
    outcome: Outcome, log: Iterable[Any], complaint: str
) -> None:
    """Each way in which the results and the server's log can differ is named."""
    (found, *_) = [c for c in books.settled("p", [outcome], [*log]) if complaint in c]
    assert "b/001" in found


def test_a_batch_that_is_run_again_pays_again_and_no_more() -> None:
    """Two results of one prompt may each ask for every answer; a third request is one too many."""
    twice = [_outcome(_TWO), _outcome(_TWO, batch="b-2")]
    assert [*books.settled("p", twice, [*_asked(0, 1, 0, 1)])] == []
    assert [*books.settled("p", twice, [*_asked(0, 1, 0, 1, 0)])]


def test_money_that_is_not_the_tokens_is_found() -> None:
    """Tokens and dollars are the sums of the answers on record."""
    wrong: list[dict[str, Any]] = [
        {"cost": {"total": 0.00024 + 1e-6, "unsettled": 0.0}},
        {"cost": {"total": 0.00024, "unsettled": 0.03}},
        {"usage": {"calls": 2, "input_tokens": 201, "output_tokens": 20, "unsettled_calls": 0}},
    ]
    for more in wrong:
        assert len([*books.money(_outcome(_TWO, **more), _PRICE)]) == 1, more


def test_an_end_that_was_not_promised_is_found() -> None:
    """A task ends as its file allows; where a call of it has failed, for that too;
    never beyond its money.
    """
    lost = {"status": "error", "reason": "worker_crashed"}
    away = {"status": "error", "reason": "provider_unavailable"}
    assert [*books.kept(_outcome(_TWO), _DONE)] == []
    assert [*books.kept(_outcome(_TWO, **lost), _DONE)]
    assert [*books.kept(_outcome(_TWO, **away), _DONE)]
    assert [*books.kept(_outcome(_CUT, unsettled=1, **away), _DONE)] == []
    assert [*books.kept(_outcome(_CUT, unsettled=1), Promise(_DONE.ends, 0.01))]
    assert [*books.day("day 1", 0.013, 0.012)]
    assert [*books.day("day 1", 0.012, 0.012)] == []


def test_a_batch_that_is_not_whole_is_found() -> None:
    """Each task has one result, and all files of a batch agree."""
    results = [_outcome(_TWO, task=name).result for name in ("001", "002")]
    lines = "".join(json.dumps(r) + "\n" for r in results)
    usage = {k: sum(r["usage"][k] for r in results) for k in results[0]["usage"]}
    summary = {"batch": "b", "counts": {"completed": 2, "error": 0}, "usage": usage}
    ids = ["001", "002"]
    assert [*books.whole(summary, results, lines, ids)] == []
    assert [*books.whole(summary, results, lines, ["001"])]
    assert [*books.whole(summary, results[:1], lines, ids)]
    assert [*books.whole(summary, results, lines + lines.splitlines()[0], ids)]
    changed = copy.deepcopy(results)
    changed[0]["usage"]["calls"] = 3
    assert [*books.whole(summary, changed, lines, ids)]
    assert [*books.whole({**summary, "counts": {"completed": 1}}, results, lines, ids)]


def test_commands_that_ran_twice_or_in_secret_are_found() -> None:
    """The lines that commands have left are those of the journal;
    an interrupted one may or may not have run.
    """
    twice = _outcome([_ran(1), _ran(2)])
    cut = _outcome([_ran(1), _ran(2, None)])
    for outcome, notes in ((twice, "1\n2\n"), (cut, "1\n2\n"), (cut, "1\n")):
        assert [*books.commands(outcome, notes)] == []
    for outcome, notes in (
        (twice, "1\n2\n2\n"),
        (twice, "1\n"),
        (twice, "1\n2\n3\n"),
        (twice, "1\n2\n3\n3\n"),
    ):
        assert len([*books.commands(outcome, notes)]) == 1


def test_orders_that_are_carried_out_too_often_are_found() -> None:
    """What was acknowledged is done once; what was given up, once at most."""
    for made, done, unsure in ((1, 1, 0), (1, 0, 1), (0, 0, 1), (2, 1, 1)):
        assert [*books.orders_done("b", made, done, unsure)] == []
    for made, done, unsure in ((0, 1, 0), (2, 1, 0), (2, 0, 1), (1, 0, 0)):
        assert [*books.orders_done("b", made, done, unsure)]


def _stood(journal: Journal, moves: dict[int, str], seconds: int = 100) -> dict[str, float]:
    """Look once a second at work in two lanes;
    return those that stood for more than a minute by the end.
    """
    patience = Patience()
    for now in range(seconds):
        work = [("north", "a"), ("south", "b")]
        patience.look(now, could_move(work, journal, now), {moves.get(now, "")})
    return patience.worn(60.0)


def test_a_lane_that_could_move_and_does_not_is_found() -> None:
    """One lane's progress excuses no other;
    what holds up one lane or batch excuses that one alone.
    """
    journal = Journal()
    assert _stood(journal, {}) == {"north": 99.0, "south": 99.0}
    assert _stood(journal, dict.fromkeys(range(100), "north")) == {"south": 99.0}
    assert _stood(journal, {50: "north", 51: "south"}) == {}
    journal.begin(Hindrance("401", 0.0, {"north"}))
    journal.begin(Hindrance("pause b", 0.0, None, {"b"}))
    assert _stood(journal, {}) == {}
    journal = Journal()
    journal.begin(Hindrance("401", 0.0, {"south"}))
    journal.begin(Hindrance("pause b", 0.0, None, {"b"}))
    assert [*_stood(journal, {})] == ["north"]


def test_a_hindrance_excuses_until_it_is_no_longer_felt() -> None:
    """From then on a lane has its minute;
    where the judge itself stood still, that is no lane's fault.
    """
    journal = Journal()
    weather = journal.begin(Hindrance("429, a wait of 20 s", 0.0, felt_s=20.0))
    journal.end(weather, 10.0)
    assert _stood(journal, {}, 90) == {}
    assert _stood(journal, {}, 91) == {"north": 61.0, "south": 61.0}
    patience = Patience()
    for now in (0.0, 1000.0):
        patience.look(now, {INBOX}, ())
    assert patience.worn(60.0) == {}
    assert "429" in "\n".join(journal.tail(12.0, 5.0))
    assert journal.tail(100.0, 5.0) == []
