"""Parkings: why work waits, for a provider, for money, or because somebody said so."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from batchd.records.tasks import Reason, Ref


class Scope(enum.StrEnum):
    """The scope of a parking: what waits."""

    #: Everything.
    ALL = "all"
    #: Everything, since nothing that waits fits into what is left of the day's budget.
    DAY = "day"
    #: All calls to one provider.
    PROVIDER = "provider"
    #: All calls to one model of a provider; its name is ``PROVIDER/MODEL``,
    #: or ``PROVIDER/MODEL@TIER`` for those at a service tier.
    MODEL = "model"
    BATCH = "batch"
    #: Its name is that of a ``Ref``: ``BATCH/TASK``.
    TASK = "task"

    @classmethod
    def of(cls, name: str) -> Scope:
        """Return what is meant by the name of a provider, or of a model: ``PROVIDER/MODEL``."""
        return cls.MODEL if "/" in name else cls.PROVIDER

    @property
    def asked(self) -> bool:
        """Whether it is asked: its calls may fail, and one of them tries how it does."""
        return self in {Scope.PROVIDER, Scope.MODEL}


class Cause(enum.StrEnum):
    """The cause of a parking: why it waits."""

    #: Somebody paused it; only `resume` ends that.
    PAUSED = "paused"
    #: The store was put back to an earlier time:
    #: whether it has run since is unknown. Ended by `resume`.
    UNCERTAIN = "uncertain"
    #: The provider refuses the key.
    AUTH = "auth"
    #: The account has no money or quota left.
    QUOTA = "quota"
    #: The provider does not answer.
    DOWN = "provider_unavailable"
    #: The provider asks everybody to wait for long.
    LIMITED = "rate_limited"
    #: The provider does not have the model, any more or at all, or not for us.
    GONE = "model_gone"
    #: No task can use it as it is set up: it takes no tools, or its address speaks another dialect.
    UNFIT = "model_unfit"
    #: What is left of the day's money is too little.
    BUDGET = "budget"
    #: The service tier that its calls ask for has no room.
    TIER = "tier_full"
    # Those that the daemon finds again by itself are never stored.
    #: It comes after a task that has not completed yet.
    DEPENDENCY = "dependency"
    #: Its batch's folder takes no files: it could leave no result.
    FOLDER = "folder"
    #: What it works in, or what has to be looked at for that, does not answer.
    SILENT = "silent"
    #: What its clone or copy begins as is being fetched.
    REPOSITORY = "repository"
    #: It has tried something that is parked, and others are to try before it does again.
    TRIED = "tried"
    #: As many tasks of its batch are at work as may be.
    CONCURRENCY = "concurrency"
    #: No worker has room for what it needs of its machine.
    NEEDS = "needs"
    #: Who had it run has gone.
    LEFT = "left"

    @property
    def reason(self) -> Reason | None:
        """How a task ends that waited too long for it; None: it may wait for ever."""
        return _REASONS.get(self)

    def fix(self, resume: str, retry: str) -> str:
        """Return how people go on, in a text with these two orders:
        let it go on, run its tasks with another model.
        """
        return _FIXES.get(self, _TRIED).format(resume=resume, retry=retry)


_REASONS = {
    Cause.AUTH: Reason.AUTH,
    Cause.QUOTA: Reason.QUOTA,
    Cause.DOWN: Reason.PROVIDER_UNAVAILABLE,
    Cause.LIMITED: Reason.PROVIDER_UNAVAILABLE,
    Cause.TIER: Reason.PROVIDER_UNAVAILABLE,
    Cause.GONE: Reason.BAD_REQUEST,
    Cause.UNFIT: Reason.BAD_REQUEST,
}


_TRIED = "fix the cause, then {resume}; it is also tried by itself"
_FIXES = {
    Cause.PAUSED: "{resume}",
    # A daemon keeps the variables that it started with; files are read again.
    Cause.AUTH: "fix the cause, then {resume}; where the key is in a variable, start batchd again with it instead; it is also tried by itself",
    Cause.UNCERTAIN: "{resume}, once you know that it has not run since",
    Cause.BUDGET: "it goes on by itself at midnight UTC; or batchd tune budget.per_day_usd=…",
    Cause.TIER: "it goes on by itself, once its service tier has room; or {resume}",
    Cause.LIMITED: "it goes on by itself, once the provider lets it; or {resume}",
    Cause.GONE: "{retry} runs its tasks with another model; or, once it is there, {resume}; it is also tried by itself",
}


class HoldKey(NamedTuple):
    """The key of one hold: what keeps a task from starting, apart from all else that does."""

    scope: Scope
    #: Of what is parked; for ``Scope.TASK`` that of the task itself,
    #: or of the one that it comes after.
    name: str
    cause: Cause

    @classmethod
    def on(cls, ref: Ref, cause: Cause) -> HoldKey:
        """Return what keeps one task by itself; with ``DEPENDENCY``, those that come after it."""
        return cls(Scope.TASK, str(ref), cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parking:
    """One thing that waits. A task is parked while any of those that concern it stands."""

    scope: Scope
    #: Of the provider, batch or task; empty for the others.
    name: str = ""
    cause: Cause
    #: For people: what happened, and how to go on.
    message: str = ""
    #: Since when, in seconds since the epoch.
    since: float
    #: For how long it has been tried in vain, in seconds: what ``max_parked_s`` is compared with.
    tried_s: float = 0.0

    @property
    def key(self) -> HoldKey:
        """Its key among all others."""
        return HoldKey(self.scope, self.name, self.cause)


def summed(parkings: Iterable[Parking]) -> tuple[Parking, ...]:
    """Return parkings without the tasks that wait for the day's money,
    where nothing else does anything else.
    """
    every = tuple(parkings)
    if not any(each.scope is Scope.DAY for each in every):
        return every
    return tuple(p for p in every if p.scope is not Scope.TASK or p.cause is not Cause.BUDGET)
