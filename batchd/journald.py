"""systemd's journal: a log line as fields of its own, over the journal's native protocol.

    journalctl -u batchd BATCHD_TASK=001 -o json

See systemd.io/JOURNAL_NATIVE_PROTOCOL. Every key of a line becomes a field ``BATCHD_KEY``, so that
none can pass for a field that means something
to the journal already (``UNIT``, ``MESSAGE``, ``CODE_FILE``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

_SOCKET = "/run/systemd/journal/socket"
#: As in syslog(3).
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
#: A journal that stands still holds the daemon up once, for so long, and not again until it reads
#: on; for every line there is ``log.file``.
_PATIENCE_S = 1.0
_PREFIX = "BATCHD_"
#: The journal drops fields with longer names.
_LONGEST_NAME = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_stream(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a descriptor leads into the journal,
    and not to where a shell redirected it.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))


class JournaldSocket:
    """The socket of systemd's journal: log lines are sent to it."""

    def __init__(self, address: str = _SOCKET) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_PATIENCE_S)

    def send(self, line: Mapping[str, Any]) -> None:
        """Send a line; one for which the journal has no time is dropped.

        Raises ``OSError`` where there is no journal.
        """
        data = encoded(line)
        try:
            self._hand_over(data)
        except (TimeoutError, BlockingIOError):
            self._socket.settimeout(0)
        else:
            self._socket.settimeout(_PATIENCE_S)

    def _hand_over(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._address)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        """Send what is too long for a datagram as a sealed file in memory."""
        with open(os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING), "wb") as file:
            file.write(data)
            file.flush()
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fileno().to_bytes(4, "little"))
            self._socket.sendmsg([], [rights], 0, self._address)

    def __del__(self) -> None:
        self._socket.close()


def encoded(line: Mapping[str, Any]) -> bytes:
    """Return a line as the journal reads it."""
    return b"".join(_field(name, value) for name, value in _fields(line))


def _fields(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", _message(line)
    yield "PRIORITY", str(_PRIORITIES.get(line["level"], _PRIORITIES["info"]))
    yield "SYSLOG_IDENTIFIER", "batchd"
    for key, value in line.items():
        # The journal has its own clock, and the level is the priority.
        if key not in {"timestamp", "level"} and value is not None:
            yield _name(key), _text(value)


def _name(key: str) -> str:
    return (_PREFIX + re.sub("[^A-Z0-9]", "_", key.upper()))[:_LONGEST_NAME]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)


def _message(line: Mapping[str, Any]) -> str:
    """Return what people read: the event, then ``key=value``, and a traceback below."""
    words = [str(line["event"])]
    for key, value in line.items():
        if key not in {"timestamp", "level", "event", "exception"} and value is not None:
            words.append(f"{key}={_quoted(value) if isinstance(value, str) else _text(value)}")
    text = " ".join(words)
    return f"{text}\n{line['exception']}" if line.get("exception") else text


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[^\s\"'=]+", text) else json.dumps(text, ensure_ascii=False)
