"""What keys order: each goes to the daemon as the command
of that name sends it, and its answer becomes a line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchd import control, words
from batchd.control import Cancel, Order, Pause, Resume, Retry
from batchd.errors import BatchdError, NoAnswerError, NoDaemonError
from batchd.records import Scope
from batchd.spool.ulid import ulid

#: What the daemon gets for an order: ten thousand tasks take their time (seconds).
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """One order, ready to be given."""

    request: Order[Any]
    #: The command that does the same, for when there is no daemon: ``cancel games/001``.
    command: str
    #: Asked before it is given; empty: it can be taken back.
    question: str


def cancelling(target: str, what: str) -> KeyOrder:
    """Return the order to end ``target``; ``what`` says what that is."""
    return KeyOrder(
        Cancel(target=(target,)),
        f"cancel {target}",
        f"Cancel {what}?",
    )


def retrying(target: str, what: str, *, failed: bool) -> KeyOrder:
    """Return the order to run ``target`` again, or only what of it failed."""
    return KeyOrder(
        # The mark makes sure that an order whose answer is lost, and which is given again, is one.
        Retry(target=(target,), failed=failed, claim=ulid()),
        f"retry {'--failed ' if failed else ''}{target}",
        f"Run {what} again?",
    )


def pausing(scope: Scope, name: str) -> KeyOrder:
    """Return the order to let a scope wait."""
    return KeyOrder(
        Pause(scope=scope, name=name),
        f"pause {words.option(scope, name)}",
        "",
    )


def resuming(scope: Scope, name: str) -> KeyOrder:
    """Return the order to let a scope go on."""
    return KeyOrder(
        Resume(scope=scope, name=name),
        f"resume {words.option(scope, name)}",
        "",
    )


class OrderSender:
    """Gives orders, each in a thread of its own: the picture goes on meanwhile."""

    def __init__(self, state: Path, wake: Callable[[], None]) -> None:
        self._state = state
        self._wake = wake
        #: What came of the last order, and whether it was refused.
        self.answer: tuple[str, bool] | None = None
        self._under_way = 0

    def give(self, order: KeyOrder) -> None:
        """Give an order; ``answer`` has its answer some time later."""
        self.answer = (f"{order.command} …", False)
        self._under_way += 1
        threading.Thread(target=self._carry, args=(order,), name="order", daemon=True).start()

    def seen(self) -> None:
        """Forget an answer that has been read; one that is still to come is not."""
        if not self._under_way:
            self.answer = None

    def _carry(self, order: KeyOrder) -> None:
        try:
            answer = control.ask(self._state, order.request, timeout_s=_PATIENCE_S)
            self.answer = (" · ".join(line.strip() for line in order.request.say(answer)), False)
        except (BatchdError, OSError) as error:
            absent = isinstance(error, NoDaemonError) and not isinstance(error, NoAnswerError)
            text = f"no daemon runs here: `batchd {order.command}` does it without one"
            self.answer = (text if absent else str(error), True)
        self._under_way -= 1
        self._wake()
