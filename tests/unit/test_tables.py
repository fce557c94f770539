"""Tables in a terminal's width, and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from batchd.cli.display import formatting
from batchd.console import width_of

HEADS = ("TASK", "STATUS", "COST", "UNSETTLED", "PROMPT", "WHY")
WHY = "after 3 rounds: 3 of 17 tests fail, of which the first says that 4 tokens were expected"
ROWS = (
    ("001", "completed", "$0.0021", "", "Document the module 写一个猜数字的游戏 number one", ""),
    ("parser", "not accepted", "$0.0310", "", "Make the tests of the parser pass.", WHY),
)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the width to write for."""
    return lambda width: monkeypatch.setattr(formatting, "room", lambda: width)


def _table() -> list[str]:
    return formatting.table(
        HEADS,
        ROWS,
        right=("COST", "UNSETTLED"),
        flexible="TASK",
        extra=("UNSETTLED",),
        texts=("PROMPT", "WHY"),
        brief=("PROMPT",),
    )


def test_texts_stand_below_where_there_is_no_room(wide: Callable[[int], None]) -> None:
    """In few columns a row keeps its figures, and its texts follow,
    wrapped by words: nothing is lost but a prompt's end.
    """
    wide(50)
    assert _table() == [
        "TASK    STATUS           COST",
        "001     completed     $0.0021",
        "  Document the module 写一个猜数字的游戏 number o…",
        "parser  not accepted  $0.0310",
        "  Make the tests of the parser pass.",
        "  after 3 rounds: 3 of 17 tests fail, of which the",
        "  first says that 4 tokens were expected",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal(width: int, wide: Callable[[int], None]) -> None:
    """Whatever stands beside and below; and every word of a reason is there."""
    wide(width)
    lines = _table()
    assert all(width_of(line) <= width for line in lines), lines
    words = " ".join(lines).split()
    assert all(word in words for word in WHY.split())


def test_a_row_is_a_line_in_a_pipe(wide: Callable[[int], None]) -> None:
    """Programs that read lines find all of a row on one;
    a column that says nothing is not there.
    """
    wide(sys.maxsize)
    head, *rows = _table()
    assert head.split() == ["TASK", "STATUS", "COST", "PROMPT", "WHY"]
    assert len(rows) == 2
    assert rows[1].endswith(WHY)


def test_facts_hang_below_their_beginning(wide: Callable[[int], None]) -> None:
    """A long fact goes on in its own column; a text keeps its lines, and steers no terminal."""
    wide(40)
    assert [
        *formatting.facts({"task": "a/b", "none": "", "answer": "one\ntwo \x1b[2J " + "word " * 6})
    ] == [
        "task       a/b",
        "answer     one",
        r"           two \x1b[2J word word word",
        "           word word word",
    ]
