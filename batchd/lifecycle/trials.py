"""Trials: whose turn it is while a provider, or a model, is parked:
one task at a time tries how it does.

Pure.
"""

from __future__ import annotations

from functools import partial

from batchd.lifecycle import Lifecycle, inputs
from batchd.records import Cause, HoldKey, Ref, Scope


class Trials:
    """The trials: picks a task that may start although its provider, or its model, is parked.

    Tasks that tried it and failed are held for its sake, the one that tried first in front: others
    may fare better. So are tasks that wait for it although it is not their own, as for a judge's.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        #: By what is half-open: the task that tries it; None while there is none.
        self._trying: dict[str, Ref | None] = {}
        #: By provider: the models that have tried it, the one that tried first in front.
        self._asked: dict[str, dict[str, None]] = {}

    def begin(self, name: str) -> None:
        """Let one task try a provider or a model."""
        self._trying[name] = None

    def end(self, name: str) -> None:
        """End the trial: no task tries the provider or model now."""
        self._trying.pop(name, None)

    def pick(self, *, alone: bool) -> Ref | None:
        """Return a task to start although what it needs is parked;
        ``alone``: in a process of its own.
        """
        for name, trying in self._trying.items():
            if trying is None and not self._lifecycle.holds.untried(name):
                ref = self._next_of(name, alone=alone)
                if ref is not None:
                    self._trying[name] = ref
                    return ref
        return None

    def left(self, ref: Ref) -> bool:
        """Note that no worker works on a task any more;
        return whether another one is to try now.
        """
        again = [name for name, trying in self._trying.items() if trying == ref]
        for name in again:
            self._trying[name] = None
        return bool(again)

    def hold(self, name: str, ref: Ref) -> None:
        """Keep a task from starting until what it needs goes on, or no other task can try that."""
        asked, model = self._asked.setdefault(name, {}), self._lifecycle.model(ref)
        asked.pop(model, None)
        asked[model] = None
        self._lifecycle.take(inputs.Held(ref, _tried(name)))

    def holds_for(self, name: str) -> bool:
        """Whether tasks are kept from starting for the sake of a provider or a model."""
        return self._lifecycle.holds.keeps(_tried(name))

    def release(self, name: str) -> tuple[Ref, ...]:
        """Let the tasks start that were held for a provider or a model; return them."""
        self._asked.pop(name, None)
        return self._lifecycle.lift(_tried(name))

    def _next_of(self, name: str, *, alone: bool) -> Ref | None:
        """Return a task that may try a provider or a model; those that it failed on come last.

        Tasks of a provider's models that are parked themselves try it where there are no others.
        """
        lifecycle, asked = self._lifecycle, tuple(self._asked.get(name, ()))
        queue = lifecycle.queue
        draw = queue.draw_suspect if alone else partial(queue.draw_of, last=asked)
        for source in (name, *lifecycle.holds.models(name)):
            ref = draw(source)
            if ref is None and alone and self._others_first(source):
                return None
            held = lifecycle.holds.kept(_tried(source))
            for first in [each for each in held if lifecycle.suspect(each) == alone]:
                if ref is not None:
                    break
                lifecycle.take(inputs.Lifted(first, _tried(source)))
                ref = draw(source)
            if ref is not None:
                return ref
        return None

    def _others_first(self, source: str) -> bool:
        """Return whether one that need not run alone is to try before one
        that did so already tries again.
        """
        first = next(iter(self._lifecycle.holds.kept(_tried(source))), None)
        waited_longer = first is not None and not self._lifecycle.suspect(first)
        return waited_longer or self._lifecycle.queue.ready(source)


def _tried(name: str) -> HoldKey:
    """Return what keeps the tasks that tried a provider, or a model, and failed."""
    return HoldKey(Scope.of(name), name, Cause.TRIED)
