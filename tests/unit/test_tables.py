"""Tables in a terminal's width, and in a pipe."""

from __future__ import annotations

import json
from operator import itemgetter

import pytest

from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.console import width_of

WHY = "after 3 rounds: 3 of 17 tests fail, of which the first says that 4 tokens were expected"
ROWS = (
    ("001", "completed", "$0.0021", "", "Document the module 写一个猜数字的游戏 number one", ""),
    ("parser", "not accepted", "$0.0310", "", "Make the tests of the parser pass.", WHY),
)
COLUMNS = (
    Column("TASK", itemgetter(0), wide="name"),
    Column("STATUS", itemgetter(1)),
    Column("COST", itemgetter(2), right=True),
    Column("UNSETTLED", itemgetter(3), right=True, optional=True),
    Column("PROMPT", itemgetter(4), wide="line"),
    Column("WHY", itemgetter(5), wide="text"),
)


def test_texts_stand_below_where_there_is_no_room() -> None:
    """In few columns a row keeps its figures, and its texts follow,
    wrapped by words: nothing is lost but a prompt's end.
    """
    assert [*tables.lines(ROWS, COLUMNS, width=50)] == [
        "TASK    STATUS           COST",
        "001     completed     $0.0021",
        "  Document the module 写一个猜数字的游戏 number o…",
        "parser  not accepted  $0.0310",
        "  Make the tests of the parser pass.",
        "  after 3 rounds: 3 of 17 tests fail, of which the",
        "  first says that 4 tokens were expected",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Whatever stands beside and below; and every word of a reason is there."""
    lines = [*tables.lines(ROWS, COLUMNS, width=width)]
    assert all(width_of(line) <= width for line in lines), lines
    words = " ".join(lines).split()
    assert all(word in words for word in WHY.split())


def test_a_row_is_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs that read lines find all of a row on one;
    a column that says nothing is not there.
    """
    tables.table(ROWS, COLUMNS)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["TASK", "STATUS", "COST", "PROMPT", "WHY"]
    assert len(rows) == 2
    assert rows[1].endswith(WHY)


def test_rows_are_values_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON and CSV have every column of every row; no text of another becomes a formula."""
    columns = (Column("name", itemgetter(0)), Column("cost_usd", itemgetter(1)))
    rows = (("=1+1", 0.1), ("b", None))
    tables.table(rows, columns, "json")
    found = json.loads(capsys.readouterr().out)
    assert found == [{"name": "=1+1", "cost_usd": 0.1}, {"name": "b", "cost_usd": None}]
    tables.table(rows, columns, "csv")
    assert capsys.readouterr().out == "name,cost_usd\n'=1+1,0.10\nb,\n"


def test_facts_hang_below_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long fact goes on in its own column; a text keeps its lines, and steers no terminal."""
    monkeypatch.setattr(formatting, "room", lambda: 40)
    assert [
        *formatting.facts({"task": "a/b", "none": "", "answer": "one\ntwo \x1b[2J " + "word " * 6})
    ] == [
        "task       a/b",
        "answer     one",
        r"           two \x1b[2J word word word",
        "           word word word",
    ]
