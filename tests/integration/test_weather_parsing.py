"""Task files that are slow or too large to be parsed, dropped into a whole daemon:
they hold up nothing but themselves.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S
from weather import TASK, Station, until

pytestmark = pytest.mark.in_turns


def _slow(patterns: int) -> bytes:
    """Return a task file in which each pattern takes a good part of a second to compile:
    all letters, of either case.
    """
    every = [f"(?i)[\x01-\U0010ffff]{i}" for i in range(patterns)]
    schema = {"anyOf": [{"pattern": pattern} for pattern in every]}
    return json.dumps({"first_prompt": "x", "output_schema": schema}).encode()


def _large() -> bytes:
    """Return a file of 100 kB that is parsed at once."""
    return json.dumps({"first_prompt": "x", "metadata": {"a": "b" * 100_000}}).encode()


def _parsing(station: Station) -> list[int]:
    """Return the processes that parse files."""
    found = []
    for pid in station.processes():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"batchd.spool.taskfile" in line:
            found.append(pid)
    return found


@pytest.fixture
def station(tmp_path: Path, model_server: str) -> Station:
    """Return a spool whose daemon is to be started."""
    return Station(tmp_path, model_server)


def _allow(station: Station, **values: float) -> None:
    """Have the daemon allow so much for a file, from its next start on."""
    config = station.folder / "config.toml"
    text = config.read_text().partition("max_parse")[0]
    keys = "".join(f"{key} = {value}\n" for key, value in values.items())
    config.write_text(text.replace("[spool]\n", f"[spool]\n{keys}", 1))


def test_a_file_that_takes_minutes_holds_up_no_other_and_no_end(station: Station) -> None:
    """Others, of its own size too, are taken up meanwhile;
    SIGTERM ends the daemon; the next one reads it again.
    """
    _allow(station, max_parse_s=300)
    with station.serving():
        station.drop("slow.json", _slow(2000))
        until(lambda: _parsing(station), station.text)
        station.drop("large.json", _large())
        station.drop("small.json")
        station.completed("large")
        station.completed("small")
        # It has gone behind both.
        until(lambda: _parsing(station), station.text)
        parsing = _parsing(station)
        station.stop()  # gives it 30 s: the file would take ten minutes
    assert not any(Path(f"/proc/{pid}").exists() for pid in parsing)
    assert not (station.outbox / "slow").exists()
    _allow(station, max_parse_s=1)
    with station.serving():
        assert "reading it takes too long: [spool] max_parse_s allows 1 s" in station.refused(
            "slow"
        )
        station.drop("after.json", _large())
        station.completed("after")


def test_a_file_that_takes_too_much_memory_is_refused(station: Station) -> None:
    """With the key that says how much it may take; the daemon's own memory does not grow."""
    _allow(station, max_parse_mb=512)
    with station.serving():
        values = b",".join([b'{"a":1}'] * 1_900_000)
        station.drop("fat.json", b'{"first_prompt":"x","metadata":{"a":[%s]}}' % values)
        refused = station.refused("fat")
        assert "memory" in refused
        station.drop("after.json", _large())
        station.completed("after")
        assert station.rss_mb() < 400


def test_a_process_that_is_killed_takes_no_file_with_it(station: Station) -> None:
    """By somebody, or for want of memory: the file is read once more."""
    with station.serving():
        station.drop("slow.json", _slow(6))
        until(lambda: _parsing(station), station.text)
        os.kill(_parsing(station)[0], signal.SIGKILL)
        until(lambda: station.logged("batch_received"), station.text, within_s=PATIENCE_S)
        assert not station.logged("batch_rejected")


def test_what_was_being_read_when_the_daemon_died_is_read_apart(station: Station) -> None:
    """A small file too, for it may be what ended the daemon:
    the next one gives it a process of its own.
    """
    with station.serving():
        station.drop("before.json", TASK)
        station.completed("before")
        mark = station.folder / ".batchd/claims"
        assert mark.exists()
        assert _parsing(station) == []
        assert station.process
        station.process.send_signal(signal.SIGKILL)
        station.process.wait()
        station.process = None
        # What a daemon leaves that dies between its claim and the store:
        # a claim of its own, stored nowhere.
        ulid = _claim(station)
        (station.folder / ".batchd/claimed" / f"{ulid}-left.json").write_bytes(TASK)
        station.start()
        station.completed("left")
        assert len(_parsing(station)) == 1


def _claim(station: Station) -> str:
    """Return a new claim of this station's."""
    from batchd.spool.ulid import Ulids  # here alone

    return Ulids(int((station.folder / ".batchd/claims").read_bytes(), 16))()


def test_the_loop_answers_while_a_large_file_is_taken_up(station: Station) -> None:
    """20,000 tasks in one file: `status` is answered in between, again and again."""
    with station.serving():
        station.drop("many.json", json.dumps([{"first_prompt": "x"}] * 20_000).encode())
        answers = 0
        deadline = time.monotonic() + 120
        while not station.logged("batch_received"):
            assert time.monotonic() < deadline, station.text()
            answers += station.answers()
        assert answers > 5
