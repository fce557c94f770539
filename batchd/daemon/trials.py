"""Half-open providers: which task tries how one does, and which ones had better not."""

from __future__ import annotations

from collections.abc import Callable

from batchd.records import Ref
from batchd.schedule import Schedule


class Trials:
    """Picks a task that may start although its provider is parked."""

    def __init__(self, schedule: Schedule, paused: Callable[[str], bool]) -> None:
        """``paused``: whether somebody paused a provider, so that nobody is to try it."""
        self._schedule = schedule
        self._paused = paused
        #: By half-open provider: the task that tries it; None while there is none.
        self._trying: dict[str, Ref | None] = {}
        #: By provider: tasks that the schedule must not start for its sake alone. They wait for it
        #: although it is not their own, as for a judge's, or it failed on them while others may fare better.
        self._held: dict[str, dict[Ref, None]] = {}

    def begin(self, provider: str) -> None:
        """Have one task try a provider."""
        self._trying[provider] = None

    def end(self, provider: str) -> None:
        """Have nobody try a provider."""
        self._trying.pop(provider, None)

    def pick(self, *, alone: bool) -> Ref | None:
        """Return a task to start although its provider is parked; ``alone``: in a process of its own."""
        for name, trying in self._trying.items():
            if trying is None and not self._paused(name):
                ref = self._schedule.take_suspect(name) if alone else self._next_of(name)
                if ref is not None:
                    self._trying[name] = ref
                    return ref
        return None

    def left(self, ref: Ref) -> bool:
        """Note that nobody works on a task any more; return whether another one is to try now."""
        again = [name for name, trying in self._trying.items() if trying == ref]
        for name in again:
            self._trying[name] = None
        return bool(again)

    def hold(self, provider: str, ref: Ref) -> None:
        """Keep a task from starting until the provider goes on, or nobody else can try it."""
        held = self._held.setdefault(provider, {})
        if ref not in held:
            held[ref] = None
            self._schedule.park(ref)

    def holds(self, ref: Ref) -> bool:
        """Whether a task is kept from starting."""
        return bool(self.held_for(ref))

    def held_for(self, ref: Ref) -> list[str]:
        """Return the providers for whose sake a task is kept from starting."""
        return [provider for provider, refs in self._held.items() if ref in refs]

    def release(self, provider: str) -> list[Ref]:
        """Let the tasks start that were held for a provider; return them."""
        refs = list(self._held.pop(provider, ()))
        for ref in refs:
            self._schedule.unpark(ref)
        return refs

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        for refs in self._held.values():
            refs.pop(ref, None)

    def _next_of(self, provider: str) -> Ref | None:
        """Return a task that may try a provider; those that it failed on come last."""
        ref = self._schedule.take_of(provider)
        if ref is None and self.release(provider):
            ref = self._schedule.take_of(provider)
        return ref
