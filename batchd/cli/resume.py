"""``batchd resume``: lets what waits go on, whatever it waits for."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from batchd import words
from batchd.cli.support import controlling, scopes
from batchd.control import Resume, ResumedScope, ShownParking
from batchd.log import escape
from batchd.observe import standstill
from batchd.records import Cause, Parking, Scope


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Without arguments, everything that is parked goes on, except tasks that are "
        "uncertain after `batchd restore`: name those. batchd tries a provider or model that "
        "failed with one call first, and reads its key again; if that call fails, it stays "
        "parked."
    )
    scopes.arguments(parser)
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Resume what the arguments name; print what goes on, what must answer first, and what is
    still held.
    """
    scope, name = scopes.scope(args)
    answer = controlling.ask(args.config, Resume(scope=scope, name=name))
    return controlling.show(answer, [*lines(scope, name, answer)], json=args.json)


def lines(scope: Scope | None, name: str, answer: ResumedScope) -> Iterator[str]:
    """Yield what the answer says."""
    what, trying, held = words.named(scope or "", name), answer.trying, answer.held
    everything = scope in {None, Scope.ALL}
    if not answer.resumed and not (everything and held):
        yield "nothing was parked" if everything else f"{what}: nothing was parked"
    elif answer.resumed > len(trying):
        freed = everything or not held
        yield f"{what} goes on" if freed else f"{what} itself is no longer parked"
    for each in trying:
        asked = words.named(Scope.of(each), each)
        yield f"{asked} is tried with one call first; once it answers, its tasks go on"
    if held:
        yield "Still parked:" if everything else "It still waits:"
        yield from standstill.lines(_known(held))
        # Another version may know others, and how they end.
        for other in held:
            if other.scope not in {*Scope} or other.cause not in {*Cause}:
                why = standstill.why(other.cause, other.message)
                yield escape(f"Parked: {other.scope} {other.name}".rstrip() + f". {why}")


def _known(held: tuple[ShownParking, ...]) -> Iterator[Parking]:
    """Yield what waits as a whole, as far as this version knows it."""
    for each in held:
        with contextlib.suppress(ValueError):
            yield Parking(
                scope=Scope(each.scope),
                name=each.name,
                cause=Cause(each.cause),
                message=each.message,
                since=each.since,
                tried_s=each.tried_s,
            )
