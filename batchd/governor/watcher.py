"""What the governor reports of what concerns more than one call."""

from __future__ import annotations

from typing import Protocol

from batchd.records import Cause


class Watcher(Protocol):
    """Who learns what concerns more than one call; called on the loop.

    ``name`` is a provider's, or a model's: ``PROVIDER/MODEL``.
    """

    def parked(self, name: str, cause: Cause, message: str) -> None:
        """No call may go to it, until ``half_opened`` says otherwise."""

    def half_opened(self, name: str) -> None:
        """One call may try how it does: see to it that somebody asks."""

    def closed(self, name: str) -> None:
        """It was parked, and answers again."""

    def gave_up(self, name: str, cause: Cause, message: str) -> None:
        """No task is to wait for it any longer: end its tasks, then ``close`` it."""

    def tier_full(self, model: str, tier: str, message: str) -> None:
        """A service tier of a model has no room: its calls wait by themselves."""

    def tier_free(self, model: str, tier: str, calls: int) -> int:
        """So many more calls may try how it does, -1: all may go; return how many tasks wait without a slot."""

    def batch_spent(self, batch: str, message: str) -> None:
        """A call of this batch cannot be paid any more; called for each."""
