"""How tasks ended, in words;
results, the log and ``--json`` keep the status and the reason as they are.
"""

from __future__ import annotations

from batchd.records import Reason, TaskStatus
from batchd.words import counted

#: What people read for a task of which no round was accepted: its time was not over.
NOT_ACCEPTED = "not accepted"
#: Which limit a task ran into: of most of them it is no time.
_LIMITS = {
    Reason.MAX_ITERATIONS: NOT_ACCEPTED,
    Reason.MAX_CALLS: "out of calls",
    Reason.TOKENS: "out of tokens",
    Reason.BUDGET: "out of money",
    Reason.WALL_CLOCK: "out of time",
}
#: All words for a status that are not the status itself.
WORDS = frozenset(_LIMITS.values())
_CANCELLED = {Reason.USER: "", Reason.DEPENDENCY: ", with what it comes after"}


def accepted(status: str, reason: str | None) -> bool:
    """Return whether a task did not end because none of its rounds was accepted."""
    return word(status, reason) != NOT_ACCEPTED


def word(status: str, reason: str | None) -> str:
    """Return a task's status in a word or two: ``completed``,
    ``not accepted``, ``out of money``, ``running``.
    """
    known = Reason(reason) if reason and status == TaskStatus.TIMEOUT else None
    return _LIMITS.get(known, str(status)) if known else str(status)


# These two stand a second time in assets/words.js, for pages; a test holds both to the same words.


def brief(status: str, reason: str | None) -> str:
    """Return how tasks ended that ended alike:
    ``completed``, ``not accepted``, ``failed: auth``.
    """
    if not reason or status == TaskStatus.TIMEOUT:
        return word(status, reason)
    if status == TaskStatus.CANCELLED:
        return f"{status}{_CANCELLED.get(Reason(reason), '')}"
    return f"failed: {reason.replace('_', ' ')}"


def said(status: str, reason: str | None, rounds: int) -> str:
    """Return how a task ended:
    ``completed``, ``not accepted after 10 rounds``, ``failed: auth``.
    """
    after = "" if accepted(status, reason) else f" after {counted(rounds, 'round')}"
    return f"{brief(status, reason)}{after}"


def why(status: str, reason: str | None, rounds: int, message: str) -> str:
    """Return why a task did not complete, and what its error says:
    ``auth: no such key``, ``after 10 rounds: 3 tests fail``.
    """
    if accepted(status, reason):
        return ": ".join(filter(None, (reason, message)))
    after = f"after {counted(rounds, 'round')}"
    # The stored message begins with the same count.
    detail = message.removeprefix(f"not done {after}").removeprefix(": ")
    if detail.startswith(","):
        return f"{after}{detail}"
    return f"{after}: {detail}" if detail else after
