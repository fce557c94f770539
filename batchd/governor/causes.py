"""The causes of a single failure:
what it says of its provider, of its model, and of its request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from batchd.governor.pacing import asked_s
from batchd.records import STANDARD, Cause, Failure, FailureKind, Reason, Tier

#: Failures that park the provider: every call would meet them.
_PARKING: Mapping[FailureKind, Cause] = {
    FailureKind.AUTH: Cause.AUTH,
    FailureKind.QUOTA: Cause.QUOTA,
    FailureKind.UNFIT: Cause.UNFIT,
}
#: Failures that end the task. After all others the same request is sent again.
FATAL: Mapping[FailureKind, Reason] = {
    FailureKind.FORBIDDEN: Reason.BAD_REQUEST,
    FailureKind.BAD_REQUEST: Reason.BAD_REQUEST,
    FailureKind.CONTENT_FILTER: Reason.CONTENT_FILTER,
    FailureKind.CONTEXT_OVERFLOW: Reason.CONTEXT_OVERFLOW,
}
#: What says that a provider has too much to do: where it answers others, the call's turn will come,
#: so that it is given up only after so many times ``max_retries``.
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529})
_PATIENCE = 10
#: How a provider says that it does not have a model, or not for us:
#: by the status, naming the model, …
_REFUSED = frozenset({FailureKind.FORBIDDEN, FailureKind.BAD_REQUEST})
_NOT_THERE = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
#: … or, with one of these, in words: DeepSeek, Groq, Mistral, OpenRouter and others say 400.
_WORDY = frozenset(
    {
        *(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE),
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_NO_MODEL = re.compile(
    r"does not know the model|model[ _]not[ _](?:exist|found)|not a valid model|unknown model|invalid model(?: name|:)"
    r"|\bmodel\b[^.]{0,200}(?:does not exist|not found|no longer (?:available|supported)"
    r"|\b(?:been|is|was) (?:retired|decommissioned|shut down))",
    re.IGNORECASE,
)
#: A 429 in these words is about the account's own limits, whichever service tier it met.
_RATE = re.compile(r"rate.?limit|(?:requests?|tokens?)[ -]per|\b[rt]p[md]\b", re.IGNORECASE)


def full(tier: Tier, failure: Failure) -> bool:
    """Whether a failure says that the service tier that a call asked for has no room:
    that says nothing of its model, nor of the provider's pace.
    """
    if tier == STANDARD or failure.kind is not FailureKind.RATE_LIMITED:
        return False
    # In front of its own words stand the model's name and the server's.
    return not _RATE.search(failure.message.rpartition("(HTTP ")[2])


def parking(failure: Failure, longest_s: float) -> Cause | None:
    """Return why one failure parks whom it concerns; None: it does not.

    ``longest_s``: a wait that keeps tasks in their slots.
    """
    if cause := _PARKING.get(failure.kind):
        return cause
    if asked_s(failure) > longest_s:
        return Cause.LIMITED
    return Cause.GONE if _gone(failure) else None


def _gone(failure: Failure) -> bool:
    """Whether the model is not there, now or ever, or not for this account:
    each of its tasks would learn the same.
    """
    if failure.kind not in _REFUSED:
        return False
    if failure.http_status in _NOT_THERE and failure.of_model:
        return True
    return failure.http_status in _WORDY and bool(_NO_MODEL.search(failure.message))


def said(failure: Failure, cause: Cause) -> str:
    """Return what people read of a failure that parks."""
    asks = f" (it asks to wait for {asked_s(failure):.0f} s)" if cause is Cause.LIMITED else ""
    return failure.message + asks


def busy(failure: Failure) -> bool:
    """Whether a failure says that there is too much to do at this time."""
    return failure.http_status in _BUSY


def holds_up(failure: Failure) -> bool:
    """Whether a call that fails like this has kept others waiting:
    its provider is busy, or was silent for all of its time.
    """
    return busy(failure) or failure.kind is FailureKind.TIMEOUT


def tries(failure: Failure, max_retries: int) -> int:
    """Return how often a request that fails like this is made again
    while its provider answers others.
    """
    return max_retries * (_PATIENCE if busy(failure) else 1)
