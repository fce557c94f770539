from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from rich.cells import cell_len

from batchd.cli.display import conversation_lines
from batchd.cli.top import head, work
from batchd.cli.top.columns import Canvas, table
from batchd.cli.top.lists import Selection
from batchd.cli.top.screen import TopScreen
from batchd.cli.top.terminal import KeyDecoder
from batchd.cli.top.watching import TopSnapshot
from batchd.cli.top.work import TaskActivity
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
HOSTILE = "\x1b]0;owned\x07 写个游戏 \u202e e\u0301 👩\u200d🚀 \r\n\t" * 9


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


def _sight() -> TopSnapshot:
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
    return TopSnapshot(snapshot, batch="docs", tasks=tasks)


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (120, 40), (40, 10), (20, 5), (3, 2)])
@pytest.mark.parametrize("keys", ["", "\t", "\tl", "?", "/t00", "c", "G", "sss"])
def test_every_screen_fits_and_is_neutral(size: tuple[int, int], keys: str) -> None:
    """Whatever is shown and however large the window:
    as many lines as it has, none too wide, nothing that steers it.
    """
    width, height = size
    sight = _sight()
    screen = TopScreen(give=lambda _: None, answer=lambda: (HOSTILE, True) if not keys else None)
    for key in KeyDecoder().feed(keys.encode()):
        screen.draw(sight, width, height)
        assert screen.key(key, sight)
    if keys == "\tl":
        assert screen.lists.opened == "batch-"
    lines = Canvas(ascii_only=False, styled=False).render(screen.draw(sight, width, height), width)
    assert len(lines) == height
    assert all(cell_len(line) <= width for line in lines), lines
    assert all(escape(line) == line for line in lines), lines
    assert all(conversation_lines.plain(line).isascii() for line in lines)


def test_the_picture_shows_what_it_should() -> None:
    """In 80 columns: daemon, work, speed, money, providers with gauges,
    troubles with their fix, batches, agents.
    """
    lines = Canvas(ascii_only=False, styled=False).render(
        TopScreen(give=lambda _: None, answer=lambda: None).draw(_sight(), 80, 40), 80
    )
    text = "\n".join(lines)
    for words in (
        "batchd 1.0  draining for 27:46 h, pid 4711",
        "100/128 agents, 4 workers",
        "Trouble since ",
        "To go on: ",
        "1,020/3,000 done  ✗ 180 failed  1,800 queued",
        "12.0 tasks/min  45.0k tokens/min  $0.60/h  about 3 h left",
        "waits   40 tasks wait for something else: not in the time left",
        "$9.50 of $10.00 (UTC day)  at most $0.2000 of it unsettled",
        "p0      ████████ 9/8 calls  ███░ 59/60 req/min",
        "and 5 providers more",
        "17/50    3   1.24M    $4.75",
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
    drawn = [line.plain for line in table(work.batch_columns(rows), rows, 80, title="BATCHES")]
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
    head, *lines = [
        line.plain for line in table(work.batch_columns(rows), rows, 80, title="BATCHES")
    ]
    assert "COST" in head
    assert "BUDGET" in head
    assert "$4.75" in lines[0]


def test_money_that_is_not_known_whole_is_shown_as_far_as_it_is() -> None:
    """A missing price hides none that is known,
    nor does a sum hide calls without an answer on record.
    """
    lost = Tally(unpriced_calls=1, input_usd=0.5, unsettled_calls=1, unsettled_usd=0.25)
    row = _batch("docs", tally=lost)
    (cost,) = [column for column in work.batch_columns([row]) if column.head == "COST"]
    assert cost.cell(row) == "> $0.5000"
    (more,) = [column for column in work.batch_columns([row]) if column.head == "UNSETTLED"]
    assert more.cell(row) == uncertain(lost) == "≤ $0.2500"
    heads = {c.head: c for c in work.columns("TIME", of_one=True, unsettled=True)}
    task = TaskActivity(
        _task("docs", "t", tally=Tally(input_usd=1.25, unsettled_calls=1)), "model", "", 0.0, NOW
    )
    assert heads["COST"].cell(task) == "$1.25"
    assert heads["UNSETTLED"].cell(task) == "1 call", "of a call without a known price"
    certain = work.batch_columns([_batch("docs")])
    assert "UNSETTLED" not in {column.head for column in certain}
    sight = _sight()
    assert sight.snapshot is not None
    snapshot = structs.replace(sight.snapshot, today=Tally(unsettled_usd=0.2, unpriced_calls=1))
    shown = "\n".join(line.plain for line in head.lines(snapshot, 80))
    assert "> $9.50 of $10.00 (UTC day)" in shown


def test_a_wide_screen_shows_what_was_asked_and_run_and_what_ended() -> None:
    """In 160 columns prompts, last commands and the ends;
    in 80 figures come first, and ends where lines are left.
    """
    done = {"status": TaskStatus.TIMEOUT, "reason": "max_iterations", "finished_at": NOW - 3}
    row, ended = _task("docs", "t000"), _task("docs", "old", **done)
    sight = _sight()
    assert sight.snapshot is not None
    snapshot = structs.replace(
        sight.snapshot,
        agents=(row,),
        doing={
            row.ref: RunningTask(task=str(row.ref), step="model", detail="openai/x", since=NOW - 1)
        },
        batches=(_batch("docs"),),
        parked=(),
        waiting=(),
        prompts={row.ref: "Write the tests.", ended.ref: "Mind the gap."},
        commands={row.ref: "shell make test"},
        ended=(ended,),
    )
    screen = TopScreen(give=lambda _: None, answer=lambda: None)

    def shown(width: int, height: int) -> str:
        drawn = screen.draw(replace(sight, snapshot=snapshot), width, height)
        return "\n".join(line.plain for line in drawn)

    wide = shown(160, 50)
    for text in ("LAST COMMAND", "shell make test", "PROMPT", "Write the tests.", "Mind the gap."):
        assert text in wide
    assert "not accepted after 2 rounds" in wide
    narrow = shown(80, 24)
    assert "PROMPT" not in narrow
    assert "ENDED LATELY" in narrow
    assert "$1.25" in narrow
    assert "ENDED LATELY" not in shown(80, 8)


def test_keys_arrive_in_any_pieces() -> None:
    """Sequences and letters that come byte by byte are keys all the same;
    an Esc alone is one once nothing follows.
    """
    sent = "\x1b[A\x1b[6~\x1bOBß\x1b[200;5uq\x1b[1;5C\r".encode()
    wanted = ["up", "page down", "down", "ß", "q", "enter"]
    assert KeyDecoder().feed(sent) == wanted
    keys = KeyDecoder()
    assert [key for byte in sent for key in keys.feed(bytes([byte]))] == wanted
    assert not keys.pending
    assert keys.feed(b"\x1b") == []
    assert keys.pending
    assert keys.flush() == ["escape"]
    assert keys.feed(b"\x1bx\xff\x00") == ["escape", "x", "\ufffd"]


def test_what_is_chosen_stays_chosen() -> None:
    """While a list moves around it; where it goes away,
    its neighbour is chosen, and the window holds it.
    """
    choice: Selection[str] = Selection(lambda item: item)
    items = list("abcdefgh")
    assert choice.settle(items) == "a"
    assert choice.settle(["0", *items]) == "0", "nothing is chosen yet"
    choice.move(items, 4)
    assert choice.window(items, 3) == ["c", "d", "e"]
    assert choice.settle(["x", "y", *items]) == "e"
    assert choice.window(["x", "y", *items], 3) == ["c", "d", "e"]
    items.remove("e")
    assert choice.settle(items) is not None
    choice.move(items, 1 << 30)
    assert choice.window(items, 3) == ["f", "g", "h"]
    assert choice.window([], 3) == []
    assert choice.settle([]) is None


def test_a_yes_must_come_after_its_question() -> None:
    """What is no yes is a no; and what is asked says what it would do."""
    given: list[str] = []
    sight = _sight()
    screen = TopScreen(give=lambda order: given.append(order.command()), answer=lambda: None)
    screen.key("c", sight)
    assert screen.urgent
    screen.key("n", sight)
    assert (given, screen.urgent) == ([], False)
    for key in "cyp":
        screen.key(key, sight)
    assert given == ["cancel docs/t000", "pause docs/t000"]
    for key in ("tab", "c", "Y", "r", "P"):
        screen.key(key, sight)
    assert given[2:] == ["cancel batch-", "pause --all"]
