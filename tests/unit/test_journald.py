from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE_S

from batchd.journald import JournaldSocket, encoded, is_stream


def _decoded(data: bytes) -> list[tuple[str, str]]:
    """Read fields as systemd does."""
    fields = []
    while data:
        head, _, data = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, end, data = (
                data[8 : 8 + length],
                data[8 + length : 9 + length],
                data[9 + length :],
            )
            assert end == b"\n"
        fields.append((name.decode(), value.decode()))
    return fields


@pytest.fixture
def listener(short: Path) -> Iterator[socket.socket]:
    """Stand where the journal would: at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(short / "socket"))
        sock.settimeout(PATIENCE_S)
        yield sock


def test_a_line_becomes_fields() -> None:
    """Each key is a field under our own prefix;
    the message is for people, and the level a priority.
    """
    line = {
        "timestamp": "2026-11-25T00:00:00.000Z",
        "level": "warning",
        "event": "tool_ran",
        "unit": "no unit of systemd's",
        "gen_ai.usage.input_tokens": 12,
        "reason": None,
        "files": ["a b", "ü"],
        "exception": "Traceback\nValueError: =\n",
    }
    message = (
        'tool_ran unit="no unit of systemd\'s" gen_ai.usage.input_tokens=12 files=["a b", "\\u00fc"]'
        "\nTraceback\nValueError: =\n"
    )
    assert _decoded(encoded(line)) == [
        ("MESSAGE", message),
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "batchd"),
        ("BATCHD_EVENT", "tool_ran"),
        ("BATCHD_UNIT", "no unit of systemd's"),
        ("BATCHD_GEN_AI_USAGE_INPUT_TOKENS", "12"),
        ("BATCHD_FILES", '["a b", "\\u00fc"]'),
        ("BATCHD_EXCEPTION", "Traceback\nValueError: =\n"),
    ]


def test_no_key_can_forge_a_field() -> None:
    """A key with a line end, an equals sign or too many letters is still one field of ours."""
    line = {
        "level": "info",
        "event": "x",
        "a=b\nMESSAGE": "1",
        "k" * 100: "2",
        "odd": {1: "\ud800"},
    }
    names = [name for name, _ in _decoded(encoded(line))]
    assert names[4:] == ["BATCHD_A_B_MESSAGE", "BATCHD_" + "K" * 57, "BATCHD_ODD"]


def test_a_long_line_goes_in_a_sealed_file(short: Path, listener: socket.socket) -> None:
    """What no datagram can hold is passed as a file in memory that cannot change any more."""
    journal = JournaldSocket(str(short / "socket"))
    journal.send({"level": "error", "event": "short"})
    assert dict(_decoded(listener.recv(1 << 16)))["MESSAGE"] == "short"
    journal.send({"level": "error", "event": "long", "text": "x" * 5_000_000})
    data, (descriptor,), _, _ = socket.recv_fds(listener, 10, 1)
    with os.fdopen(descriptor, "r+b") as file:
        assert data == b""
        file.seek(0)
        assert len(dict(_decoded(file.read()))["BATCHD_TEXT"]) == 5_000_000
        with pytest.raises(PermissionError):
            os.write(file.fileno(), b"forged")


def test_a_journal_without_time_holds_nothing_up(short: Path, listener: socket.socket) -> None:
    """A journal that reads nothing is waited for once, whatever is said;
    one that reads on gets what is said then.

    Where there is no journal at all, the caller learns of it.
    """
    journal = JournaldSocket(str(short / "socket"))
    began = time.monotonic()
    for _ in range(1000):
        journal.send({"level": "info", "event": "x" * 1000})
    assert time.monotonic() - began < 3.0
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.recv(1 << 16)
    journal.send({"level": "info", "event": "again"})
    assert dict(_decoded(listener.recv(1 << 16)))["MESSAGE"] == "again"
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        journal.send({"level": "info", "event": "x"})


def test_only_the_journal_s_own_stream_counts(tmp_path: Path) -> None:
    """A descriptor that leads elsewhere, as after `2>file`,
    is no journal, whatever the environment says.
    """
    with (tmp_path / "file").open("w") as file:
        there = os.fstat(file.fileno())
        assert is_stream(file.fileno(), {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
        assert not is_stream(
            file.fileno(), {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"}
        )
        assert not is_stream(file.fileno(), {"JOURNAL_STREAM": "nonsense"})
        assert not is_stream(file.fileno(), {})
    assert not is_stream(10_000, {"JOURNAL_STREAM": ":"})
