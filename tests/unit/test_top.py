from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from rich.cells import cell_len
from rich.console import Console

from batchd.cli.display import conversation_lines
from batchd.cli.top import picture
from batchd.cli.top.app import Choice, Lists, shown
from batchd.cli.top.watching import Sight
from batchd.console import name_in, pinched
from batchd.control import DaemonStatus, OpenTrouble
from batchd.control.status import (
    DayStatus,
    ProviderStatus,
    RunningTask,
    TaskCounts,
    WorkerStatus,
)
from batchd.log import escape
from batchd.observe.status import AnswerRate, Speed, Status
from batchd.records import Batch, Cause, Parking, Ref, Scope, Tally, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.words import uncertain

NOW = 1_795_000_000.0
HOSTILE = "[blink]x[/blink] \x1b]0;owned\x07 写个游戏 \u202e e\u0301 👩\u200d🚀 \r\n\t" * 9


def _task(batch: str, name: str, **fields: Any) -> TaskRow:
    row = TaskRow(
        ref=Ref(batch, name),
        status=TaskStatus.RUNNING,
        reason=None,
        message="",
        model="openai/gpt-5-mini",
        priority=0,
        directory="/srv/x",
        after=(),
        round=2,
        tally=Tally(calls=7, input_tokens=123_456, output_tokens=789, input_usd=1.25),
        step="ToolRan",
        worker="1",
        attempts=1,
        crashes=0,
        queued_at=NOW - 600,
        since=NOW - 400,
        started_at=NOW - 500,
        finished_at=None,
        published=False,
    )
    return replace(row, **fields)


def _batch(name: str, **fields: Any) -> BatchRow:
    batch = Batch(
        name=name, claim="", outbox="/o", request="r", received_at=NOW - 700, budget_usd=5.0
    )
    row = BatchRow(
        batch=batch,
        tasks=50,
        queued=30,
        running=2,
        parked=1,
        completed=14,
        timeout=1,
        error=2,
        cancelled=0,
        tally=Tally(calls=60, input_tokens=1_234_567, output_tokens=4_321, input_usd=4.75),
        finished_at=None,
        published_at=None,
        pruned=0,
        problems=(),
    )
    return replace(row, **fields)


def _sight() -> Sight:
    """Return a busy spool, in which every text that somebody else writes is hostile."""
    trouble = OpenTrouble("outbox_trouble", HOSTILE, NOW - 30, HOSTILE)
    parking = Parking(
        scope=Scope.PROVIDER, name="other", cause=Cause.AUTH, message=HOSTILE, since=NOW - 9
    )
    agents = tuple(_task("docs", f"t{n:03}") for n in range(100))
    snapshot = Status(
        at=NOW,
        daemon=DaemonStatus(
            pid=4711,
            version="1.0",
            started_at=NOW - 100_000,
            draining=True,
            tasks=TaskCounts(queued=0, running=0),
            workers=(WorkerStatus(),) * 4,
            slots=128,
            day=DayStatus(limit_usd=10.0, spent_usd=9.5, reserved_usd=0.4),
            troubles=(trouble,),
            providers={
                f"p{n}": ProviderStatus(concurrent=8, under_way=9, rpm=60) for n in range(9)
            },
        ),
        today=Tally(unsettled_usd=0.2),
        agents=agents,
        doing={
            row.ref: RunningTask(task=str(row.ref), step="tool", detail=HOSTILE, since=NOW - n)
            for n, row in enumerate(agents)
        },
        waiting=(_task("docs", "parked", status=TaskStatus.PARKED, message=HOSTILE),),
        batches=tuple(_batch(f"batch-{'x' * n}") for n in range(60)),
        held=40,
        parked=(parking,),
        prompts={row.ref: HOSTILE for row in agents},
        commands={row.ref: HOSTILE for row in agents},
        ended=(_task(HOSTILE, "ended", status=TaskStatus.ERROR, reason="auth"),) * 9,
        rates={f"p{n}": AnswerRate(59.0, 0.0) for n in range(9)},
        speed=Speed(over_s=600, tasks_a_minute=12.0, tokens_a_minute=45_000.0, usd_a_minute=0.01),
    )
    tasks = tuple(_task("docs", f"t{n:03}", status=TaskStatus.QUEUED) for n in range(500))
    return Sight(snapshot, batch="docs", tasks=tasks)


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (120, 40), (40, 10), (20, 5), (3, 2)])
@pytest.mark.parametrize(
    "view",
    [{}, {"in_batches": True}, {"opened": "docs"}, {"typed": HOSTILE}, {"filter": HOSTILE}],
)
def test_every_list_fits_and_is_neutral(size: tuple[int, int], view: dict[str, Any]) -> None:
    """Whatever is shown and however large the window: no line is too wide, nothing steers it, and
    nothing is taken for markup.
    """
    width, height = size
    lists = Lists()
    for name, value in view.items():
        setattr(lists, name, value)
    drawn = [*lists.lines(_sight(), width, height), lists.foot()]
    assert all(shown(line, Console(), width).cell_length == width for line in drawn)
    assert all(escape(line.plain) == line.plain for line in drawn)
    assert not any(span.style == "blink" for line in drawn for span in line.spans)
    assert all(conversation_lines.plain(line.plain).isascii() for line in drawn)


def test_the_picture_shows_what_it_should() -> None:
    """In 80 columns: daemon, work, speed, money, providers with gauges,
    troubles with their fix, batches, agents.
    """
    lines = [line.plain for line in Lists().lines(_sight(), 80, 39)]
    text = "\n".join(lines)
    for words in (
        "batchd 1.0  draining for 27:46 h, pid 4711",
        "100/128 agents, 4 workers",
        "Trouble since ",
        "To go on: ",
        "1,020/3,000 done  ✗ 180 failed  60 waiting",
        "12.0 tasks/min  45.0k tokens/min  $0.60/h  about 3 h left",
        "waits   40 tasks wait for something else: not in the time left",
        "$9.50 of $10.00 (UTC day)  at most $0.2000 of it unsettled",
        "p0      ████████ 9/8 calls  ███░ 59/60 req/min",
        "and 5 providers more",
        "17/50       3   1.24M    $4.75",
        "$5.00",
        "docs/t000                   tool 0 s             2  8:20 min     124k    $1.25",
    ):
        assert words in text, f"{words}\n{text}"


def test_names_that_begin_alike_stay_apart() -> None:
    """In 80 columns a long name is cut in the middle, in lists of batches and of tasks,
    in letters of two columns too; a column of text is cut at its end.
    """
    begun = "upgrade-the-dependency-in-all-of-our-repositories-and-run-their-tests"
    rows = [
        _batch(f"{begun}-{end}", tally=Tally(unsettled_calls=1))
        for end in ("2026-11-29", "2026-11-30")
    ]
    drawn = [line.plain for line in picture.batches(rows, 80, "BATCHES")]
    assert all(cell_len(line) <= 80 for line in drawn)
    for line, end in zip(drawn[1:], ("-29", "-30"), strict=True):
        name = line.split()[0]
        assert name.startswith("upgrade")
        assert name.endswith(end)
        assert "…" in name
    assert pinched("abcdefghij", 7) == "abc…hij"
    assert pinched("写一个猜数字的游戏", 8) == "写一…戏"
    assert all(cell_len(pinched("写一a个b猜数字的游戏", n)) <= n for n in range(2, 20))
    assert pinched("short", 7) == "short"
    assert name_in("upgrade-everything-29/fizzbuzz", 20) == "upgra…ng-29/fizzbuzz"
    assert name_in("upgrade-everything-29/fizzbuzz", 12) == "upgrad…zbuzz"


def test_money_stays_where_room_is_short() -> None:
    """In 80 columns, a batch of thousands with a budget leaves tokens out before what it cost."""
    batch = _batch("documentation", tasks=3000, completed=3000, error=0, timeout=0)
    rows = [batch, _batch("dear", tally=Tally(unsettled_calls=1))]
    head, *lines = [line.plain for line in picture.batches(rows, 80, "BATCHES")]
    assert "COST" in head
    assert "BUDGET" in head
    assert "$4.75" in lines[0]


def test_money_that_is_not_known_whole_is_shown_as_far_as_it_is() -> None:
    """A missing price hides none that is known,
    nor does a sum hide calls without an answer on record.
    """
    lost = Tally(unpriced_calls=1, input_usd=0.5, unsettled_calls=1, unsettled_usd=0.25)
    head, line = picture.batches([_batch("docs", tally=lost)], 120, "BATCHES")
    assert "UNSETTLED" in head.plain
    assert "> $0.5000" in line.plain
    assert uncertain(lost) == "≤ $0.2500" in line.plain
    doing = picture.Doing(_snapshot())
    task = _task("docs", "t", tally=Tally(input_usd=1.25, unsettled_calls=1))
    head, line = picture.tasks([task], doing, 120, "AT WORK", one=True)
    assert "$1.25" in line.plain
    assert "1 call" in line.plain, "of a call without a known price"
    assert "UNSETTLED" not in picture.batches([_batch("docs")], 120, "BATCHES")[0].plain
    snapshot = structs.replace(_snapshot(), today=Tally(unsettled_usd=0.2, unpriced_calls=1))
    shown = "\n".join(line.plain for line in picture.head(snapshot, 80))
    assert "> $9.50 of $10.00 (UTC day)" in shown


def test_failures_stand_first_and_cancelled_tasks_are_none() -> None:
    """Of a batch what failed comes first, else its tasks stand as in the file; to be cancelled is
    counted apart.
    """
    ends = [TaskStatus.COMPLETED, TaskStatus.CANCELLED, TaskStatus.ERROR, TaskStatus.TIMEOUT]
    tasks = tuple(_task("docs", f"t{n}", status=end) for n, end in enumerate(ends))
    lists = Lists()
    lists.opened = "docs"

    def listed() -> list[str]:
        sight = Sight(_snapshot(), batch="docs", tasks=tasks)
        drawn = [line.plain.partition(" ")[0] for line in lists.lines(sight, 80, 39)]
        return [name for name in drawn if name in {"t0", "t1", "t2", "t3"}]

    assert listed() == ["t2", "t3", "t0", "t1"]
    lists.failed = True
    assert listed() == ["t2", "t3"]
    head, line = picture.batches([_batch("docs", cancelled=7)], 120, "BATCHES")
    assert head.plain.split()[3:5] == ["FAILED", "CANCELLED"]
    assert line.plain.split()[4:6] == ["3", "7"]


def _snapshot() -> Status:
    snapshot = _sight().snapshot
    assert snapshot is not None
    return snapshot


def test_a_wide_screen_shows_what_was_asked_and_run_and_what_ended() -> None:
    """In 160 columns prompts, last commands and the ends;
    in 80 figures come first, and ends where lines are left.
    """
    done = {"status": TaskStatus.TIMEOUT, "reason": "max_iterations", "finished_at": NOW - 3}
    row, ended = _task("docs", "t000"), _task("docs", "old", **done)
    doing = RunningTask(task=str(row.ref), step="model", detail="openai/x", since=NOW - 1)
    snapshot = structs.replace(
        _snapshot(),
        agents=(row,),
        doing={row.ref: doing},
        batches=(_batch("docs"),),
        parked=(),
        waiting=(),
        prompts={row.ref: "Write the tests.", ended.ref: "Mind the gap."},
        commands={row.ref: "shell make test"},
        ended=(ended,),
    )
    lists = Lists()

    def shown(width: int, height: int) -> str:
        drawn = lists.lines(Sight(snapshot), width, height)[:height]
        return "\n".join(line.plain for line in drawn)

    wide = shown(160, 50)
    for text in ("LAST COMMAND", "shell make test", "PROMPT", "Write the tests.", "Mind the gap."):
        assert text in wide
    assert "not accepted" in wide
    assert "after 2 rounds" in wide
    narrow = shown(80, 24)
    assert "PROMPT" not in narrow
    assert "ENDED LATELY" in narrow
    assert "$1.25" in narrow
    assert "ENDED LATELY" not in shown(80, 8)


def test_what_is_chosen_stays_chosen() -> None:
    """While a list moves around it; where it goes away,
    its neighbour is chosen, and the window holds it.
    """
    choice: Choice[str] = Choice(lambda item: item)
    items = list("abcdefgh")
    assert choice.settle(items) == "a"
    assert choice.settle(["0", *items]) == "0", "nothing is chosen yet"
    choice.window(items, 4)
    assert choice.moves("pagedown", items)
    assert choice.window(items, 3) == (["c", "d", "e"], "3-5/8")
    assert choice.settle(["x", "y", *items]) == "e"
    assert choice.window(["x", "y", *items], 3)[0] == ["c", "d", "e"]
    items.remove("e")
    assert choice.settle(items) is not None
    assert choice.moves("end", items)
    assert choice.window(items, 3)[0] == ["f", "g", "h"]
    assert choice.window([], 3) == ([], "0")
    assert choice.settle([]) is None
    assert not choice.moves("x", items)
