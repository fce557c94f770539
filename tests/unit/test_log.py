from __future__ import annotations

import io
import json
import logging
import os
import pty
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from batchd import console, log
from batchd.log import Action


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, log._Library)]


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_one_line_of_json_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, level and event come first; control characters,
    surrogates and odd values cannot break a line.
    """
    log.configure("info", "json")
    log.get_logger(batch="b", task="001", worker=3).info(
        Action.TOOL_RAN,
        command="rm\n\x1b[31m \u202e\ud800",
        deep=["\ud800", {"x": object}],
        **{"gen_ai.usage.input_tokens": 12},
    )
    log.get_logger().debug(Action.TASK_STARTED)
    (line,) = _lines(capsys.readouterr().err)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert line["event"] == "tool_ran"
    assert (line["batch"], line["task"], line["worker"]) == ("b", "001", 3)
    assert line["command"] == r"rm\n\x1b[31m \u202e\ud800"
    assert line["gen_ai.usage.input_tokens"] == 12


def test_a_line_for_the_journal_begins_with_its_priority(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr is systemd's journal each line, JSON as elsewhere, has its level before it;
    with `format = "json"` it has not.
    """
    there = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
    for form in ("auto", "json"):
        log.configure("debug", form)
        for say in ("debug", "info", "warning", "error", "critical"):
            getattr(log.get_logger(), say)(Action.TOOL_RAN, command="<0>\n<0>")
    lines = capfd.readouterr().err.splitlines()
    assert [line[:4] for line in lines] == ["<7>{", "<6>{", "<4>{", "<3>{", "<2>{"] + ['{"ti'] * 5
    levels = [json.loads(line.removeprefix(line[:3]))["level"] for line in lines[:5]]
    assert levels == ["debug", "info", "warning", "error", "critical"]


def test_only_the_journal_s_own_stream_counts(tmp_path: Path) -> None:
    """A descriptor that leads elsewhere, as after `2>file`,
    is no journal, whatever the environment says.
    """
    with (tmp_path / "file").open("w") as file:
        there = os.fstat(file.fileno())
        stream = f"{there.st_dev}:{there.st_ino}"
        assert log.leads_to_journal(file.fileno(), {"JOURNAL_STREAM": stream})
        assert not log.leads_to_journal(file.fileno(), {"JOURNAL_STREAM": f"{stream}1"})
        assert not log.leads_to_journal(file.fileno(), {"JOURNAL_STREAM": "nonsense"})
        assert not log.leads_to_journal(file.fileno(), {})
    assert not log.leads_to_journal(10_000, {"JOURNAL_STREAM": ":"})


def test_keys_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like a key, in a message or a command, is cut out."""
    log.configure("info", "json")
    log.get_logger().info(
        Action.MODEL_FAILED,
        message="Incorrect API key provided: sk-proj-abcdefghijklmn",
        command="curl -H 'Authorization: Bearer abcdefghijklmnop'",
    )
    err = capsys.readouterr().err
    assert "abcdefghijkl" not in err
    assert err.count("[secret]") == 2


def test_columns_on_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    """The console format is for people: a line each, no field without a meaning,
    and nothing that could steer their terminal.
    """
    log.configure("info", "console")
    log.get_logger(batch="b", task="t", worker=7).warning(
        Action.MODEL_FAILED, error="busy", message="\x1b[2Jgone", tools=[], lost={"a": "\n\x1b[2J"}
    )
    log.get_logger().info(
        Action.MODEL_CALLED, tools=["sh", "x\n12:00:00 b/t task finished: completed"]
    )
    log.get_logger().info(
        Action.MODEL_CALLED, purpose="agent", **{"gen_ai.usage.input_tokens": 12}, seconds=0.5
    )
    err = capsys.readouterr().err
    assert "\x1b[2J" not in err
    failed, forged, called = (line.split(" ", 1)[1] for line in err.splitlines())
    assert failed.startswith("b/t warning: model failed: error busy, \\x1b[2Jgone, lost {")
    assert forged == 'model called: tools sh "x\\n12:00:00 b/t task finished: completed"'
    assert called == "model called: agent, in 12, seconds 0.5"


def test_a_line_fits_a_terminal() -> None:
    """News takes one line of a terminal and is cut there, the cut shown, a long name before what
    happened to it; a warning is wrapped by words and stays whole.
    """
    words = "the quick brown fox jumps over the lazy dog"
    news = {"level": "info", "event": "task_started", "batch": "b", "feedback": words}
    shown = console.text(news, 40)
    assert len(shown) == 40 + 1
    assert shown.endswith("…\n")
    named = {"batch": "upgrade-all-repositories-2026-11-29", "task": "parser"}
    long = console.text({**news, **named}, 80)
    assert "upgrade-a…026-11-29/parser task started: the quick" in long
    assert " ".join(console.text({**news, "message": words}, 40).split()).endswith(words)
    lines = console.text({**news, "level": "warning"}, 40).splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 40 for line in lines)
    assert " ".join(" ".join(lines).split()).endswith(words)


def _read(file: io.FileIO) -> bytes:
    """Return what there is to read."""
    os.set_blocking(file.fileno(), False)
    found = b""
    while piece := file.read(1 << 16):
        found += piece
    return found


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_of_stderr_who_stands_still_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Lines are left out after a second, and counted once it reads on;
    what it gets is whole lines but for one.
    """
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    with os.fdopen(writer, "w") as stderr, os.fdopen(reader, "rb", buffering=0) as pager:
        monkeypatch.setattr(sys, "stderr", stderr)
        log.configure("info", "json")
        logger = log.get_logger()
        began = time.monotonic()
        for number in range(300):
            logger.info(Action.TOOL_RAN, number=number, message="x" * 3000)
        assert 0.9 < time.monotonic() - began < 5
        text = _read(pager)
        logger.info(Action.TOOL_RAN, number=300)
        text += _read(pager)
    *first, notice, last = text.decode().splitlines()
    whole = [line for line in first if line.endswith("}")]
    assert len(first) - len(whole) <= 1
    assert [json.loads(line)["number"] for line in whole] == list(range(len(whole)))
    assert json.loads(notice)["event"] == "lines_left_out"
    assert json.loads(notice)["lines"] == 300 - len(whole)
    assert json.loads(last)["number"] == 300


def test_exceptions_and_libraries_speak_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is a field of its line, and a library's warning is a line of ours."""
    log.configure("info", "json")
    try:
        int("no")
    except ValueError:
        log.get_logger().exception(Action.STORE_TROUBLE)
    logging.getLogger("watchdog").warning("overflow %d", 3)
    first, second = _lines(capsys.readouterr().err)
    assert first["exception"].splitlines()[-1].startswith("ValueError: ")
    assert (second["event"], second["message"]) == ("library_warned", "overflow 3")


def test_a_traceback_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception may quote what a model said:
    controls in it are escaped, its own lines apart, and keys left out.
    """
    log.configure("info", "console")
    try:
        int("\x1b[2J\u202e")
    except ValueError as error:
        error.add_note("\x1b]0;gone\x07 sk-abcdefghijklmnop")
        log.get_logger().exception(Action.STORE_TROUBLE)
    err = capsys.readouterr().err
    assert "\n\\x1b]0;gone\\x07 sk-[secret]\n" in err
    assert not {"\x1b", "\u202e"} & {*err}


def test_the_level_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """A reload of the configuration changes the level of loggers that exist."""
    log.configure("warning", "json")
    logger = log.get_logger()
    logger.info(Action.TASK_STARTED)
    log.configure("debug", "json")
    log.get_logger().debug(Action.TASK_FINISHED)
    assert [x["event"] for x in _lines(capsys.readouterr().err)] == ["task_finished"]


def test_what_is_hidden_stands_in_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys are masked in texts, in lists and in tracebacks, whatever wrote them there."""
    log.hide(["h1dden-key"])
    log.configure("info", "json")
    try:
        int("h1dden-key")
    except ValueError:
        log.get_logger(batch="h1dden-key").exception(
            Action.STORE_TROUBLE, errors=[{"a": "h1dden-key"}]
        )
    logging.getLogger("aiohttp").warning("sent h1dden-key")
    err = capsys.readouterr().err
    assert "h1dden" not in err
    first, second = _lines(err)
    assert first["errors"] == [{"a": "[secret]"}]
    assert second["message"] == "sent [secret]"
