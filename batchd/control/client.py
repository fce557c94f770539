"""The client's half of the control socket: its address, however long its path is, and what is sent
there: synchronous, and light to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from batchd.control import requests
from batchd.control.requests import A, ControlRequest, Order
from batchd.errors import (
    BatchdError,
    DaemonEndedError,
    NoAnswerError,
    NoDaemonError,
    NotPossibleError,
    UsageError,
)
from batchd.version import __version__

#: The socket's file in the state directory.
NAME = "control.sock"
#: What a socket's address holds, with the zero at its end.
_ADDRESS_BYTES = 108
_TIMEOUT_S = 30.0
_AGAIN_S = 0.02
#: What the daemon gets for an order: ten thousand tasks take their time.
PATIENCE_S = 600.0
#: When somebody who waits for an answer wants to know what for.
_WONDER_S = 2.0


@contextlib.contextmanager
def address(state: Path) -> Iterator[str]:
    """Give a path to the socket, its own if that is short:
    108 bytes are all that a socket's address holds.

    By its own path a search for sockets below some folder sees at once that it lies elsewhere.
    """
    plain = str(state / NAME)
    if state.is_absolute() and len(os.fsencode(plain)) < _ADDRESS_BYTES:
        yield plain
        return
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)


def ask(
    state: Path,
    message: ControlRequest[A],
    *,
    timeout_s: float = _TIMEOUT_S,
    heed: Callable[[str], None] | None = None,
    waiting: Callable[[], None] | None = None,
    via: str = "",
) -> A:
    """Ask the daemon of a state directory; return its answer.

    See ``request``, which also says what is raised.

    ``via``: for whom, where that is not this process: the daemon's log names it beside the process.

    Raises ``BatchdError`` also for an answer that is none: another version's.
    """
    verb, fields = message.verb(), requests.fields(message)
    if via:
        fields["via"] = via
    given = request(state, verb, timeout_s=timeout_s, heed=heed, waiting=waiting, **fields)
    return _understood(state, message, given)


def give(state: Path, order: Order[A], *, via: str = "") -> A:
    """Give an order to the daemon of a state directory, and to nobody else; return its answer.

    ``via``: as for ``ask``. Raises ``BatchdError``.
    """
    try:
        return ask(state, order, timeout_s=PATIENCE_S, via=via)
    except NoAnswerError:
        raise
    except NoDaemonError:
        said = f"no daemon runs here: `batchd {order.command()}` does it without one"
        raise NoDaemonError(said) from None
    except OSError as error:
        raise NoDaemonError(f"the daemon cannot be asked: {error.strerror}") from None


def _understood(state: Path, message: ControlRequest[A], given: Mapping[str, Any]) -> A:
    try:
        return requests.answer(message, given)
    except msgspec.ValidationError as error:
        verb = message.verb()
        raise BatchdError(
            f"batchd {__version__} does not understand what the daemon on {state} answers to "
            f"{verb} ({error}): use the program of its version, or restart the daemon"
        ) from None


class Connection:
    """A connection that stays open: as long as it does, its giver is there.

    A context manager that closes itself.
    """

    def __init__(self, state: Path, timeout_s: float = _TIMEOUT_S) -> None:
        """Connect. Raises ``NoDaemonError``, ``NoAnswerError``."""
        self._state = state
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            with address(state) as where:
                _connect(self._socket, where, timeout_s)
        except OSError as error:
            self._socket.close()
            if isinstance(error, FileNotFoundError | NotADirectoryError | ConnectionError):
                raise NoDaemonError(f"no daemon runs on {state}") from None
            if isinstance(error, TimeoutError):
                raise NoAnswerError(f"the daemon on {state} does not answer") from None
            raise
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, message: ControlRequest[A], timeout_s: float | None = _TIMEOUT_S) -> A:
        """Ask; return the answer.

        Raises as the function ``ask`` does. ``timeout_s`` None: wait as long as it takes.
        """
        fields = {"verb": message.verb(), **requests.fields(message)}
        return _understood(self._state, message, _agreed(self.exchange(fields, timeout_s)))

    def exchange(
        self,
        fields: Mapping[str, Any],
        timeout_s: float | None,
        waiting: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request's fields, and return those of its answer. See ``request``."""
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(json.dumps(fields).encode() + b"\n")
            if waiting and not _readable(self._socket):
                waiting()
            answer = self._answers.readline()
        except TimeoutError:
            raise NoAnswerError(f"the daemon on {self._state} does not answer") from None
        except ConnectionError:
            answer = b""
        if not answer.endswith(b"\n"):
            raise DaemonEndedError(f"the daemon on {self._state} has ended")
        value: dict[str, Any] = json.loads(answer)
        return value


def request(
    state: Path,
    verb: str,
    *,
    timeout_s: float = _TIMEOUT_S,
    heed: Callable[[str], None] | None = None,
    waiting: Callable[[], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Ask in the protocol's own words: a verb and its fields,
    as JSON has them; return the answer's fields.

    ``heed`` gets the version that answered, with a refusal too; empty: one that does not say yet.
    ``waiting`` is called once, where the answer is not there within a few seconds.

    Raises ``NoDaemonError`` where none runs, ``NoAnswerError`` where one does and says nothing for
    ``timeout_s``; where it refuses, ``UsageError``, or ``NotPossibleError``, or ``BatchdError``;
    ``ForbiddenError`` for another user than the daemon's.
    """
    try:
        with Connection(state, timeout_s) as connection:
            answer = connection.exchange({"verb": verb, **arguments}, timeout_s, waiting)
    except PermissionError:
        from batchd import users  # most who ask are the daemon's user

        raise users.forbidden(verb, state) from None
    if heed:
        heed(answer.get("batchd", ""))
    return _agreed(answer)


def _agreed(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer's fields, unless it is a refusal."""
    answer.pop("batchd", "")
    if not answer.pop("ok", False):
        kind = _REFUSALS.get(answer.get("exit_code", 2), BatchdError)
        raise kind(answer.get("error", "the daemon refused"))
    return answer


_REFUSALS: Mapping[int, type[BatchdError]] = {2: UsageError, 3: NotPossibleError}


def _readable(sock: socket.socket) -> bool:
    """Return whether an answer, or the end, comes within the time after which people wonder."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_WONDER_S * 1000))


def _connect(sock: socket.socket, where: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            sock.connect(where)
        except BlockingIOError:  # so many wait that not even the queue has room
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(_AGAIN_S)
        else:
            return
