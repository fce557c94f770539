"""News: what the governor reports of what concerns more than one call, as values.

``name`` is a provider's, or a model's: ``PROVIDER/MODEL``, ``PROVIDER/MODEL@TIER``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from batchd.records import (
    Cause,
)


class Parked(Struct, frozen=True):
    """No call may go to it, until ``HalfOpened`` says otherwise."""

    name: str
    cause: Cause
    message: str


class HalfOpened(Struct, frozen=True):
    """One call may try how it does: see to it that a task asks, if there is a key to ask with."""

    name: str


class Closed(Struct, frozen=True):
    """A provider or model that was parked, and answers again."""

    name: str


class GaveUp(Struct, frozen=True):
    """No task is to wait for it any longer: end its tasks, then ``close`` it."""

    name: str
    cause: Cause
    message: str


class BatchSpent(Struct, frozen=True):
    """A call of this batch cannot be paid any more; for each call."""

    batch: str
    message: str


class Overlong(Struct, frozen=True):
    """A model wrote more than it was asked for, by its provider's own count."""

    model: str
    message: str


News: TypeAlias = Parked | HalfOpened | Closed | GaveUp | BatchSpent | Overlong
#: Takes news, and does nothing else at once: who decides about tasks reads them in turn.
Report: TypeAlias = Callable[[News], None]
