"""Half-open providers and models: which task tries how one does, and which ones had better not.

Tries go round: a provider's models in turn, and of each the tasks that have not tried yet, those that must run alone
first; then the one that did so the longest ago, of either kind. So no task that always fails speaks for all.
"""

from __future__ import annotations

from functools import partial

from batchd.daemon.core import Core
from batchd.daemon.register import Register
from batchd.records import Cause, HoldKey, Ref, Scope


class Trials:
    """Picks a task that may start although its provider, or its model, is parked."""

    def __init__(self, core: Core, register: Register) -> None:
        """``register``: what is parked, and why."""
        self._core = core
        self._lifecycle = core.lifecycle
        self._register = register
        #: By what is half-open: the task that tries it; None while there is none.
        self._trying: dict[str, Ref | None] = {}
        #: By what is parked: tasks that must not start for its sake alone, the one that tried first in
        #: front. They wait for it although it is not their own, as for a judge's, or it failed on them while others
        #: may fare better.
        self._held: dict[str, dict[Ref, None]] = {}
        #: By provider: the models that have tried it, likewise.
        self._asked: dict[str, dict[str, None]] = {}

    def begin(self, name: str) -> None:
        """Have one task try a provider or a model."""
        self._trying[name] = None

    def end(self, name: str) -> None:
        """Have no task try it."""
        self._trying.pop(name, None)

    def pick(self, *, alone: bool) -> Ref | None:
        """Return a task to start although what it needs is parked; ``alone``: in a process of its own."""
        for name, trying in self._trying.items():
            if trying is None and not self._register.untried(name):
                ref = self._next_of(name, alone=alone)
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

    def hold(self, name: str, ref: Ref) -> None:
        """Keep a task from starting until what it needs goes on, or no other task can try that."""
        asked, model = self._asked.setdefault(name, {}), self._lifecycle.model(ref)
        asked.pop(model, None)
        asked[model] = None
        held = self._held.setdefault(name, {})
        if ref not in held:
            held[ref] = None
            self._core.hold(ref, _tried(name))

    def holds(self, ref: Ref) -> bool:
        """Whether a task is kept from starting."""
        return bool(self.held_for(ref))

    def held_for(self, ref: Ref) -> list[str]:
        """Return the providers and models for whose sake a task is kept from starting."""
        return [name for name, refs in self._held.items() if ref in refs]

    def holds_for(self, name: str) -> bool:
        """Whether tasks are kept from starting for the sake of a provider or a model."""
        return bool(self._held.get(name))

    def release(self, name: str) -> list[Ref]:
        """Let the tasks start that were held for a provider or a model; return them."""
        self._asked.pop(name, None)
        refs = list(self._held.pop(name, ()))
        for ref in refs:
            self._core.lift(ref, _tried(name))
        return refs

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        for refs in self._held.values():
            refs.pop(ref, None)

    def _next_of(self, name: str, *, alone: bool) -> Ref | None:
        """Return a task that may try a provider or a model; those that it failed on come last.

        Tasks of a provider's models that are parked themselves try it where there are no others.
        """
        queue, asked = self._lifecycle.queue, tuple(self._asked.get(name, ()))
        draw = queue.draw_suspect if alone else partial(queue.draw_of, last=asked)
        for source in (name, *self._register.models(name)):
            ref = draw(source)
            held = self._held.get(source, {})
            if ref is None and alone and self._others_first(source):
                return None
            for first in [each for each in held if self._lifecycle.suspect(each) == alone]:
                if ref is not None:
                    break
                del held[first]
                self._core.lift(first, _tried(source))
                ref = draw(source)
            if ref is not None:
                return ref
        return None

    def _others_first(self, source: str) -> bool:
        """Return whether one that need not run alone is to try before one that did so already tries again."""
        first = next(iter(self._held.get(source, ())), None)
        waited_longer = first is not None and not self._lifecycle.suspect(first)
        return waited_longer or self._lifecycle.queue.ready(source)


def _tried(name: str) -> HoldKey:
    """Return what keeps the tasks that tried a provider, or a model, and failed."""
    return HoldKey(Scope.of(name), name, Cause.TRIED)
