"""How tasks ended, in words; results, the log and ``--json`` keep the status and the reason as they are."""

from __future__ import annotations

from batchd.observe.words import counted
from batchd.records import Reason, Status

#: What people read for a task of which no round was accepted: its time was not over.
NOT_ACCEPTED = "not accepted"


def accepted(status: str, reason: str | None) -> bool:
    """Return whether a task did not end because none of its rounds was accepted."""
    return status != Status.TIMEOUT or reason != Reason.MAX_ITERATIONS


def word(status: str, reason: str | None) -> str:
    """Return a task's status in a word or two: ``completed``, ``not accepted``, ``running``."""
    return str(status) if accepted(status, reason) else NOT_ACCEPTED


def brief(status: str, reason: str | None) -> str:
    """Return how tasks ended that ended alike: ``completed``, ``not accepted``, ``error, auth``."""
    more = f", {reason}" if reason and accepted(status, reason) else ""
    return f"{word(status, reason)}{more}"


def said(status: str, reason: str | None, rounds: int) -> str:
    """Return how a task ended: ``completed``, ``not accepted after 10 rounds``, ``error, auth``."""
    after = "" if accepted(status, reason) else f" after {counted(rounds, 'round')}"
    return f"{brief(status, reason)}{after}"


def why(status: str, reason: str | None, rounds: int, message: str) -> str:
    """Return why a task did not complete, and what its error says: ``auth: no such key``, ``after 10 rounds: 3 tests fail``."""
    if accepted(status, reason):
        return ": ".join(filter(None, (reason, message)))
    after = f"after {counted(rounds, 'round')}"
    # The stored message begins with the same count.
    detail = message.removeprefix(f"not done {after}").removeprefix(": ")
    if detail.startswith(","):
        return f"{after}{detail}"
    return f"{after}: {detail}" if detail else after
