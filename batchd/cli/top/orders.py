"""What keys order: each goes to the daemon as the command of that name sends it, and its answer becomes a line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchd import control
from batchd.cli import cancel, pause, resume, retry
from batchd.errors import BatchdError, NoAnswerError, NoDaemonError
from batchd.observe import words
from batchd.spool.ulid import ulid

#: What the daemon gets for an order: ten thousand tasks take their time (seconds).
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Order:
    """One order, ready to be given."""

    #: The verb of the control socket.
    verb: str
    #: The command that does the same, for when there is no daemon: ``cancel games/001``.
    command: str
    #: Asked before it is given; empty: it can be taken back.
    question: str
    arguments: Mapping[str, Any]
    #: Makes the lines of the answer.
    told: Callable[[Mapping[str, Any]], list[str]] = field(compare=False)


def cancelling(target: str, what: str) -> Order:
    """Return the order to end ``target``; ``what`` says what that is."""
    return Order(
        "cancel",
        f"cancel {target}",
        f"Cancel {what}?",
        {"target": [target], "message": ""},
        lambda answer: cancel.told([target], answer),
    )


def retrying(target: str, what: str, *, failed: bool) -> Order:
    """Return the order to run ``target`` again, or only what of it failed."""
    return Order(
        "retry",
        f"retry {'--failed ' if failed else ''}{target}",
        f"Run {what} again?",
        # The mark makes sure that an order whose answer is lost, and which is given again, is one.
        {"target": [target], "failed": failed, "claim": ulid()},
        retry.told,
    )


def pausing(scope: str, name: str) -> Order:
    """Return the order to let a scope wait."""
    return Order(
        "pause",
        f"pause {words.option(scope, name)}",
        "",
        {"scope": scope, "name": name, "message": ""},
        lambda answer: pause.told(scope, name, answer),
    )


def resuming(scope: str, name: str) -> Order:
    """Return the order to let a scope go on."""
    return Order(
        "resume",
        f"resume {words.option(scope, name)}",
        "",
        {"scope": scope, "name": name},
        lambda answer: [*resume.told(scope, name, answer)],
    )


class Desk:
    """Gives orders, each in a thread of its own: the picture goes on meanwhile."""

    def __init__(self, state: Path, wake: Callable[[], None]) -> None:
        self._state = state
        self._wake = wake
        #: What came of the last order, and whether it was refused.
        self.answer: tuple[str, bool] | None = None
        self._under_way = 0

    def give(self, order: Order) -> None:
        """Give an order; ``answer`` has its answer some time later."""
        self.answer = (f"{order.command} …", False)
        self._under_way += 1
        threading.Thread(target=self._carry, args=(order,), name="order", daemon=True).start()

    def seen(self) -> None:
        """Forget an answer that has been read; one that is still to come is not."""
        if not self._under_way:
            self.answer = None

    def _carry(self, order: Order) -> None:
        try:
            answer = control.request(
                self._state, order.verb, timeout_s=_PATIENCE_S, **order.arguments
            )
            self.answer = (" · ".join(line.strip() for line in order.told(answer)), False)
        except NoAnswerError as error:
            self.answer = (str(error), True)
        except NoDaemonError:
            told = f"no daemon runs here: `batchd {order.command}` does it without one"
            self.answer = (told, True)
        except (BatchdError, OSError) as error:
            self.answer = (str(error), True)
        self._under_way -= 1
        self._wake()
