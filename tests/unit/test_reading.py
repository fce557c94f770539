from __future__ import annotations

import pytest

from batchd.cli.display import conversation_lines
from batchd.console import width_of, wrapped
from batchd.events import CallAnswered, RoundEvaluated, Suspended, ToolRan
from batchd.records import Answer, Evaluation, Purpose, ToolCall, Usage
from batchd.views import Kind, Passage, passages
from batchd.words import compact, duration, rough, span


def _text(passage: Passage, width: int = 0, *, full: bool = False) -> list[str]:
    return [line.text + line.tail for line in conversation_lines.lines(passage, width, full=full)]


def _output(text: str) -> Passage:
    return Passage(at=0.0, kind=Kind.TOOL, title="shell make", text=text, seconds=1.25, ok=True)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\tb", ["a       b"]),
        ("10 %\r50 %\r100 %\r\ndone\r\n", ["100 %", "done"]),
        ("\x1b[1;31mred\x1b[0m\x1b[K", ["red"]),
        ("\x1b]0;owned\x07\x9b2J", [r"\x1b]0;owned\x07\x9b2J"]),
        ("abc\u202edcba\u2066", [r"abc\u202edcba\u2066"]),
        ("one\u2028line\x85\x0b", [r"one\u2028line"]),
        ("a\b\bb\x7f", [r"a\x08\x08b\x7f"]),
        ("", [""]),
    ],
)
def test_nothing_steers_a_terminal(given: str, shown: list[str]) -> None:
    """Colours go, progress bars show their last state,
    tabs are spaces, all else is shown as what it is.
    """
    assert [*conversation_lines.neutral(given)] == shown


def test_lines_are_wrapped_where_they_fit() -> None:
    """At spaces where that is not far back, letters
    of two columns never cut in half, nothing lost.
    """
    words = "the quick brown fox jumps over the lazy dog"
    assert [*wrapped(words, 16)] == ["the quick brown", "fox jumps over", "the lazy dog"]
    assert [*wrapped("x" * 10, 4)] == ["xxxx", "xxxx", "xx"]
    chinese = "写一个猜数字的游戏" * 3
    pieces = [*wrapped(chinese, 7)]
    assert "".join(pieces) == chinese
    assert {width_of(p) for p in pieces} <= {6, 2, 4}
    assert [*wrapped("写", 1)] == ["写"]


def test_outputs_are_folded() -> None:
    """First and last lines, and how many are between;
    what would fold one line alone is whole, and so is all with ``full``.
    """
    long = _output("\n".join(f"line {n}" for n in range(100)))
    assert _text(long)[1:] == [
        *(f"  │ line {n}" for n in range(4)),
        "  │ … 92 lines folded …",
        *(f"  │ line {n}" for n in range(96, 100)),
    ]
    assert len(_text(long, full=True)) == 101
    assert len(_text(_output("\n" * 8 + "x"))) == 10
    wide = _text(_output("y" * 70_000))
    assert len(wide) == 2
    assert "69,600 characters" in wide[1]
    assert len(_text(_output("y" * 70_000), full=True)[1]) == 70_004
    words = Passage(at=0.0, kind=Kind.ANSWER, title="agent", text="\n".join("abcdefghijklmnop"))
    assert len(_text(words)) == 17, "what a model says is never folded"


def test_no_line_is_wider_than_the_terminal() -> None:
    """Margins and figures included; what is continued keeps its margin."""
    passage = _output("word " * 60 + "\n" + "写" * 100)
    for width in (20, 47, 80):
        lines = _text(passage, width)
        assert all(width_of(line) <= width for line in lines), lines
        figures = next(place for place, line in enumerate(lines) if "1.3 s" in line)
        assert all(line.startswith("  │ ") for line in lines[figures + 1 :])
    end = Passage(
        at=0.0,
        kind=Kind.END,
        title="completed",
        seconds=3.0,
        usage=Usage(calls=4, input_tokens=123_456, output_tokens=1),
    )
    assert all(width_of(line) <= 30 for line in _text(end, 30)), _text(end, 30)
    title = Passage(at=0.0, kind=Kind.TOOL, title="shell " + "x" * 100, seconds=12.0, ok=False)
    assert all(width_of(line) <= 40 for line in _text(title, 40))
    assert _text(title, 40)[-1].endswith("  12 s")


def test_what_tools_were_given_is_shown() -> None:
    """The rest of a long command, the text of a file, what is put for what;
    also where JSON is not quite JSON.
    """

    def shown(name: str, arguments: str) -> list[str]:
        call = ToolCall("1", name, arguments)
        [passage] = passages(ToolRan(at=0.0, call=call, output="ok", exit_code=0), "")
        return [line[9:] if place == 0 else line for place, line in enumerate(_text(passage))]

    assert shown("shell", '{"command": "cat > a <<E\\nx\\nE"}') == [
        "$ shell cat > a <<E",
        "    x",
        "    E",
        "  │ ok",
    ]
    assert shown("write_file", '{"path": "a.py", "content": "1\n2\n"}')[:3] == [
        "$ write_file a.py",
        "    1",
        "    2",
    ]
    edit = '{"path": "a.py", "old": "1", "new": "2\\n3"}'
    assert shown("edit_file", edit)[1:4] == ["    - 1", "    + 2", "    + 3"]
    assert shown("shell", '{"command": 7') == ['$ shell {"command": 7', "  │ ok"]


def test_verdicts_calls_and_notes_read_as_one_would_say_them() -> None:
    """Who says what of the work, tokens and time of an answer, why a task waits."""
    usage = Usage(calls=1, input_tokens=1200, cached_input_tokens=800, output_tokens=50)
    answer = Answer(content="I am done.", usage=usage, seconds=2.0)
    events = [
        CallAnswered(at=0.0, purpose=Purpose.AGENT, answer=answer),
        RoundEvaluated(at=0.0, evaluation=Evaluation(by="check", done=False, feedback="no\nfile")),
        Suspended(at=0.0, cause="park", message="the day's budget is spent"),
    ]
    lines = [line for event in events for passage in passages(event, "") for line in _text(passage)]
    assert [line[9:] if line[2:3] == ":" else line for line in lines] == [
        "▸ agent  1,200 in (800 cached), 50 out · 2.0 s",
        "  I am done.",
        "✗ check: not done",
        "  no",
        "  file",
        "‖ waits",
        "  the day's budget is spent",
    ]


def test_figures_are_short() -> None:
    """Three digits or so, and spans without what cannot be read while it changes."""
    counts = (0, 999, 999.4, 1000, 12_345, 99_960, 999_499, 999_500, 4_560_000, 2.5e9)
    assert [compact(n) for n in counts] == [
        "0",
        "999",
        "999",
        "1.00k",
        "12.3k",
        "100k",
        "999k",
        "1.00M",
        "4.56M",
        "2.50G",
    ]
    assert [span(s) for s in (0.2, 59.9, 60.0, 61.0, 3725.0, 172_799, 187_200)] == [
        "0 s",
        "59 s",
        "1:00 min",
        "1:01 min",
        "1:02 h",
        "47:59 h",
        "2 d 4 h",
    ]
    assert [duration(s) for s in (0.04, 9.94, 9.95, 59.4, 59.5, None)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1:00 min",
        "",
    ]
    assert [rough(s) for s in (1, 44, 89, 90, 5399, 5400, 129_600)] == [
        "5 s",
        "45 s",
        "90 s",
        "2 min",
        "90 min",
        "2 h",
        "2 d",
    ]
