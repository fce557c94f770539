"""The table of the lifecycle: what follows from an input in each phase.

Pure; the whole of what is decided about a task.

Of the rows of a phase and an input the first one holds whose condition does. A pair without a row
cannot come about, and is a bug: ``decide`` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from batchd.events import Suspended
from batchd.lifecycle import inputs
from batchd.lifecycle.effects import (
    Confirm,
    Effect,
    End,
    Free,
    HandOver,
    Publish,
    Recover,
    Start,
    Stop,
    Suspend,
)
from batchd.lifecycle.entry import Entry, Phase
from batchd.records import Reason, TaskStatus

#: What a cancelled task's result says where no reason was given.
CANCELLED = "cancelled"

#: A condition. The entry has taken over what the input says.
When: TypeAlias = Callable[[Entry, Any], bool]
#: An effect that says no more than which task it is about.
Plain: TypeAlias = type[Start | HandOver | Free | Stop | Suspend | Publish | Confirm]
#: Makes an effect.
Make: TypeAlias = Plain | Callable[[Entry, Any], Effect]


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: in a phase, after an input, where a condition holds."""

    phase: Phase
    input: type[inputs.Input]
    #: Named after what it asks; None: always.
    when: When | None
    #: The next phase; None: queued, or held where something holds it.
    then: Phase | None
    makes: tuple[Make, ...] = ()


# Conditions


def has_ended(entry: Entry, _: object) -> bool:
    """Its end is durable."""
    return entry.ended is not None


def is_cancelled(entry: Entry, _: object) -> bool:
    """Whether the task was asked to end."""
    return entry.cancelled


def is_halted(entry: Entry, _: object) -> bool:
    """Whether the task was asked to give its slot back."""
    return entry.wish is not None and not entry.cancelled


def is_worn_out(_: Entry, given: inputs.Settled) -> bool:
    """Its workers died too often."""
    return given.worn_out is not None


def is_doomed(entry: Entry, _: object) -> bool:
    """What it comes after has failed meanwhile."""
    return entry.doom is not None


# Effects


def recover(entry: Entry, given: inputs.Lost) -> Effect:
    """Write that it lost its worker, as the input says."""
    return Recover(entry.ref, given.counted, given.alone)


def suspend(entry: Entry, _: object) -> Effect:
    """Write that it gave its slot back, as it was asked to."""
    # Here, and not when it is written: somebody may cancel it in between.
    assert isinstance(entry.wish, Suspended), "nothing else makes it wait"
    return Suspend(entry.ref, entry.wish)


def end(_: Entry, given: inputs.GiveUp | inputs.Refused | inputs.Broke) -> Effect:
    """End it as the input says."""
    return given.end


def end_cancelled(entry: Entry, _: object) -> Effect:
    """End it as its user wishes."""
    message = entry.wish.message if entry.wish else ""
    # The dispatch of one that is about to start is none that was tried.
    attempts = entry.attempt - 1 if entry.phase is Phase.STARTING else 0
    return End(entry.ref, TaskStatus.CANCELLED, Reason.USER, message or CANCELLED, attempts)


def end_doomed(entry: Entry, _: object) -> Effect:
    """End it, as what it comes after has failed."""
    assert entry.doom is not None, "it is doomed"
    return entry.doom


def end_worn_out(_: Entry, given: inputs.Settled) -> Effect:
    """End it, as its workers died too often."""
    assert given.worn_out is not None, "it is worn out"
    return given.worn_out


# The rows, in the order of a task's life


def _rows() -> Iterator[Transition]:
    # A hold and a priority count once it waits, or waits again.
    for phase in Phase:
        for given in (inputs.Held, inputs.Lifted, inputs.Reprioritised):
            if phase is not Phase.PUBLISHED:
                yield Transition(phase, given, None, None if phase.waits else phase)
    # While it waits.
    for waiting in (Phase.QUEUED, Phase.HELD):
        yield Transition(waiting, inputs.CancelOrdered, None, Phase.ENDING, (end_cancelled,))
        yield Transition(waiting, inputs.GiveUp, None, Phase.ENDING, (end,))
        yield Transition(waiting, inputs.Halt, None, None)
    yield Transition(Phase.QUEUED, inputs.SlotFree, None, Phase.RESERVED, (Start,))
    # While it has a slot, and no worker has it.
    for early in (Phase.RESERVED, Phase.STARTING):
        for wish in (inputs.CancelOrdered, inputs.Halt):
            yield Transition(early, wish, None, early)
    reserved, starting = Phase.RESERVED, Phase.STARTING
    yield Transition(reserved, inputs.Unready, is_cancelled, Phase.ENDING, (Free, end_cancelled))
    yield Transition(reserved, inputs.Unready, None, None, (Free,))
    yield Transition(reserved, inputs.Stale, None, Phase.ENDED, (Free, Publish))
    yield Transition(reserved, inputs.Dispatched, None, Phase.STARTING)
    yield Transition(reserved, inputs.Lost, None, Phase.SUSPENDED, (recover,))
    yield Transition(starting, inputs.Ready, is_cancelled, Phase.ENDING, (Free, end_cancelled))
    yield Transition(starting, inputs.Ready, is_halted, Phase.SUSPENDED, (Free, suspend))
    yield Transition(starting, inputs.Ready, None, Phase.RUNNING, (HandOver,))
    yield Transition(starting, inputs.Refused, is_cancelled, Phase.ENDING, (Free, end_cancelled))
    yield Transition(starting, inputs.Refused, is_halted, Phase.SUSPENDED, (Free, suspend))
    yield Transition(starting, inputs.Refused, None, Phase.ENDING, (Free, end))
    yield Transition(starting, inputs.TurnedAway, is_cancelled, Phase.ENDING, (Free, end_cancelled))
    yield Transition(starting, inputs.TurnedAway, None, Phase.SUSPENDED, (Free, suspend))
    yield Transition(starting, inputs.Lost, None, Phase.SUSPENDED, (recover,))
    # While a worker has it.
    yield Transition(Phase.RUNNING, inputs.CancelOrdered, None, Phase.STOPPING, (Stop,))
    yield Transition(Phase.RUNNING, inputs.Halt, None, Phase.STOPPING, (Stop,))
    yield Transition(Phase.STOPPING, inputs.CancelOrdered, None, Phase.STOPPING, (Stop,))
    yield Transition(Phase.STOPPING, inputs.Halt, None, Phase.STOPPING)
    for at_work in (Phase.RUNNING, Phase.STOPPING):
        yield Transition(at_work, inputs.Finished, None, at_work)
        yield Transition(at_work, inputs.Confirmed, None, Phase.ENDED, (Confirm,))
        yield Transition(at_work, inputs.Unconfirmed, None, Phase.ENDED, (Publish,))
        yield Transition(at_work, inputs.GaveBack, None, Phase.SUSPENDED, (Suspend,))
        yield Transition(at_work, inputs.Broke, has_ended, Phase.ENDED, (Publish,))
        yield Transition(at_work, inputs.Broke, None, Phase.ENDING, (end,))
        yield Transition(at_work, inputs.Lost, None, Phase.SUSPENDED, (recover,))
    # Once it has stopped.
    yield Transition(Phase.SUSPENDED, inputs.CancelOrdered, None, Phase.SUSPENDED)
    yield Transition(Phase.SUSPENDED, inputs.Halt, None, Phase.SUSPENDED)
    yield Transition(Phase.SUSPENDED, inputs.Settled, has_ended, Phase.ENDED, (Publish,))
    yield Transition(Phase.SUSPENDED, inputs.Settled, is_cancelled, Phase.ENDING, (end_cancelled,))
    yield Transition(Phase.SUSPENDED, inputs.Settled, is_worn_out, Phase.ENDING, (end_worn_out,))
    yield Transition(Phase.SUSPENDED, inputs.Settled, None, None)
    yield Transition(Phase.ENDING, inputs.Ended, None, Phase.ENDED, (Publish,))
    # Another order wants its end as well.
    yield Transition(Phase.ENDING, inputs.EndRefused, is_cancelled, Phase.ENDING, (end_cancelled,))
    yield Transition(Phase.ENDING, inputs.EndRefused, is_doomed, Phase.ENDING, (end_doomed,))
    yield Transition(Phase.ENDING, inputs.EndRefused, None, None)
    yield Transition(Phase.ENDED, inputs.Published, None, Phase.PUBLISHED)
    # What its worker said last may become durable late.
    for late in (Phase.SUSPENDED, Phase.ENDING):
        yield Transition(late, inputs.Finished, None, late)
    for over in (Phase.ENDING, Phase.ENDED):
        for vain in (inputs.CancelOrdered, inputs.Halt, inputs.GiveUp):
            yield Transition(over, vain, None, over)


def _table() -> Mapping[tuple[Phase, type[inputs.Input]], tuple[Transition, ...]]:
    found: dict[tuple[Phase, type[inputs.Input]], tuple[Transition, ...]] = {}
    for row in _rows():
        key = row.phase, row.input
        found[key] = (*found.get(key, ()), row)
    return found


#: By phase and input: the rows that may hold, in order.
TABLE: Mapping[tuple[Phase, type[inputs.Input]], tuple[Transition, ...]] = _table()


def decide(entry: Entry, given: inputs.Input) -> tuple[Phase, list[Effect]]:
    """Return the next phase of a task, and what is to be done.

    Raises ``ValueError`` for what cannot come about.
    """
    for row in TABLE.get((entry.phase, type(given)), ()):
        if row.when is None or row.when(entry, given):
            then = row.then or entry.waiting
            return then, [_made(make, entry, given) for make in row.makes]
    raise ValueError(f"{entry.ref} is {entry.phase}: {type(given).__name__} cannot come about")


def _made(make: Make, entry: Entry, given: inputs.Input) -> Effect:
    return make(entry.ref) if isinstance(make, type) else make(entry, given)
