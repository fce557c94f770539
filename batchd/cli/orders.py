"""The orders to a daemon: ``cancel``, ``retry``, ``pause``, ``resume``, ``priority`` and
``tune``; and what their answers say, here as in `top`.

Each task that is cancelled keeps a result that says so; a retry is a new run with a name of its
own; what runs and is paused stops at its next durable point.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchd import gone, words
from batchd.cli.display import formatting
from batchd.cli.support import controlling
from batchd.control import (
    Cancel,
    Cancelled,
    Pause,
    Paused,
    Priority,
    Resume,
    ResumedScope,
    Retried,
    Retry,
    Tune,
)
from batchd.errors import BatchdError, UsageError
from batchd.log import escape
from batchd.records import Cause, Parking, Ref, Scope, TaskStatus

#: What to do where no daemon runs that could be tuned.
_NO_TUNING = "`tune` changes a running daemon; for the next one, edit config.toml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the one that the parser is for."""
    match command := parser.prog.rpartition(" ")[2]:
        case "cancel":
            parser.epilog = (
                "Tasks that have ended stay as they are, and are named. Exit code 0: something is "
                "cancelled now, or everything was cancelled before."
            )
            _targets(parser)
            parser.add_argument(
                "-m", "--message", default="", help="the reason, which the results show"
            )
        case "retry":
            _targets(parser)
            parser.add_argument(
                "--failed",
                action="store_true",
                help="only tasks that did not complete, and tasks that come after them",
            )
            parser.add_argument(
                "--yes", action="store_true", help="do not ask about tasks that have completed"
            )
            parser.add_argument(
                "--model",
                metavar="PROVIDER/MODEL",
                help="use this model instead; tasks that wait for a model that is gone are cancelled and run again too",
            )
        case "pause" | "resume":
            which = parser.add_mutually_exclusive_group()
            which.add_argument("target", nargs="?", metavar="BATCH[/TASK]")
            which.add_argument("--all", action="store_true", help="everything")
            which.add_argument(
                "--provider", metavar="NAME", help="what needs this provider's models"
            )
            which.add_argument("--model", metavar="PROVIDER/MODEL", help="what needs this model")
            if command == "pause":
                parser.add_argument(
                    "-m", "--message", default="", help="the reason, which `status` shows"
                )
            else:
                parser.epilog = (
                    "Without arguments, everything that is parked goes on, except tasks that are "
                    "uncertain after `batchd restore`: name those. batchd tries a provider or "
                    "model that failed with one call first, and reads its key again; if that call "
                    "fails, it stays parked."
                )
            controlling.as_json(parser)
        case "priority":
            _targets(parser)
            # After the targets: argparse would take "-5" for an option otherwise.
            parser.add_argument(
                "priority", type=int, metavar="N", help="higher numbers go first; the default is 0"
            )
        case "tune":
            parser.epilog = (
                "Example: `batchd tune pool.processes=8 budget.per_day_usd=20`. Changes outlast "
                "SIGHUP, and end with the daemon or with `tune --reset`. Without arguments, tune "
                "shows what is changed."
            )
            parser.add_argument("change", nargs="*", metavar="SECTION.KEY=VALUE")
            parser.add_argument(
                "--reset", action="store_true", help="first undo all earlier changes"
            )
            controlling.as_json(parser)


def _targets(parser: argparse.ArgumentParser) -> None:
    """Declare which batches and tasks an order is about."""
    parser.add_argument("target", nargs="+", metavar="BATCH[/TASK]")
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Give the order, and print what its answer says."""
    file, json = args.config, args.json
    match args.command:
        case "cancel":
            given = _checked(args.target)
            ended = controlling.ask(file, Cancel(target=given, message=args.message))
            return controlling.show(ended, cancelled(given, ended), json=json)
        case "retry":
            return _retry(args, _checked(args.target))
        case "pause":
            scope, name = _scope(args)
            if scope is None:
                raise UsageError(
                    "name one: BATCH, BATCH/TASK, --provider NAME, --model PROVIDER/MODEL, or --all"
                )
            held = controlling.ask(file, Pause(scope=scope, name=name, message=args.message))
            return controlling.show(held, paused(scope, name, held), json=json)
        case "resume":
            scope, name = _scope(args)
            freed = controlling.ask(file, Resume(scope=scope, name=name))
            return controlling.show(freed, [*resumed(scope, name, freed)], json=json)
        case "priority":
            given = _checked(args.target)
            ordered = controlling.ask(file, Priority(target=given, priority=args.priority))
            count = words.counted(ordered.tasks, "task")
            line = f"{words.listed(given)}: {count} with priority {args.priority}"
            return controlling.show(ordered, [line], json=json)
        case _:
            changes: dict[str, str] = {}
            for change in args.change:
                key, equals, value = change.partition("=")
                if not equals or not key.strip():
                    raise UsageError(f"{escape(change)} is not SECTION.KEY=VALUE")
                changes[key.strip()] = value
            tuned = controlling.running(file, Tune(changes=changes, reset=args.reset), _NO_TUNING)
            lines = [f"{key} = {value}" for key, value in tuned.overrides.items()]
            lines = lines or ["Nothing is changed: the daemon works as config.toml says."]
            return controlling.show(tuned, lines, json=json)


def _checked(given: Sequence[str]) -> tuple[str, ...]:
    """Return the targets, each checked to be one. Raises ``UsageError``."""
    return tuple("/".join(filter(None, formatting.split_target(target))) for target in given)


def _scope(args: argparse.Namespace) -> tuple[Scope | None, str]:
    """Return the scope and the name that are meant; None, and an empty name, where none is."""
    if args.all:
        return Scope.ALL, ""
    if args.provider is not None:
        return Scope.PROVIDER, args.provider
    if args.model is not None:
        return Scope.MODEL, args.model
    if args.target is None:
        return None, ""
    batch, task = formatting.split_target(args.target)
    return (Scope.TASK, f"{batch}/{task}") if task else (Scope.BATCH, batch)


def _retry(args: argparse.Namespace, given: Sequence[str]) -> int:
    from batchd.observe.snapshot import Unseen, ask  # no other order asks the store
    from batchd.spool.ulid import ulid

    if args.model == "":
        # As of a variable that is not set: with the tasks' own models it would be another order.
        raise UsageError("--model is empty: give PROVIDER/MODEL, as in openai/gpt-6-luna")
    if not (args.failed or args.yes or args.json or _wanted(args.config, given)):
        formatting.complain("nothing runs again; --failed runs only what did not complete")
        return 2
    # The mark makes sure that an order whose answer is lost, and which is given again, is one.
    answer = controlling.ask(
        args.config,
        Retry(target=tuple(given), failed=args.failed, model=args.model or "", claim=ulid()),
    )
    code = controlling.show(answer, retried(answer), json=args.json)
    if answer.runs and not args.json:
        state = formatting.state_directory(args.config)
        if ask(state) is Unseen.ABSENT:
            formatting.complain("No daemon runs; they wait until `batchd serve` starts.")
    return code


def _wanted(file: Path | None, targets: Sequence[str]) -> bool:
    """Return whether what has completed is to run, and be paid, again:
    on a terminal that is asked.
    """
    from batchd.store.reader import StoreReader

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    count = 0
    try:
        with StoreReader(formatting.store_path(formatting.state_directory(file))) as reader:
            for batch, task in map(formatting.split_target, targets):
                if task:
                    count += reader.task(Ref(batch, task)).status is TaskStatus.COMPLETED
                else:
                    count += reader.batch(batch).completed
    except BatchdError:
        return True  # the order itself says what is wrong
    if not count:
        return True
    done = f"{words.counted(count, 'task')} completed before"
    again = "it" if count == 1 else "them"
    question = f"{done}. Running {again} again costs money again. Run all? [y/N] "
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def cancelled(given: Sequence[str], answer: Cancelled) -> list[str]:
    """Return how many tasks were ended, and how what had ended before did so."""
    before = {each.target for each in answer.ended}
    names = [name for name in given if name not in before]
    count = words.counted(answer.cancelled, "task")
    lines = [f"{words.listed(names)}: {count} cancelled"] if names else []
    for ended in answer.ended:
        if not ended.counts:
            lines.append(f"{ended.target} was refused when it came: it has no tasks")
        elif "/" in ended.target:
            lines.append(f"{ended.target} has ended already, as {' '.join(ended.counts)}")
        else:
            counts = ", ".join(f"{count:,} {status}" for status, count in ended.counts.items())
            lines.append(f"{ended.target} has ended already: {counts}")
    return lines


def retried(answer: Retried) -> list[str]:
    """Return the names of the new runs."""
    return [
        f"{run.batch}: {words.counted(run.tasks, 'task')} of {run.retry_of} queued again"
        for run in answer.runs
    ] + [
        f"without {key}, which is gone: {gone.TASK_KEYS.get(key, '')}"
        for key in answer.dropped or ()
    ]


def paused(scope: Scope, name: str, answer: Paused) -> list[str]:
    """Return how many tasks wait now, and how to go on."""
    judged = answer.judged
    only = f"; {judged:,} of them need it only as a judge, and work until then" if judged else ""
    return [
        f"{words.named(scope, name)} is paused: {words.counted(answer.parked, 'task')}{only}",
        f"To go on: batchd resume {words.option(scope, name)}",
    ]


def resumed(scope: Scope | None, name: str, answer: ResumedScope) -> Iterator[str]:
    """Yield what goes on, what must answer first, and what is still held."""
    from batchd.observe import standstill

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
        known = []
        for other in held:
            with contextlib.suppress(ValueError):  # this version may not know it
                known.append(
                    Parking(
                        scope=Scope(other.scope),
                        name=other.name,
                        cause=Cause(other.cause),
                        message=other.message,
                        since=other.since,
                        tried_s=other.tried_s,
                    )
                )
        yield from standstill.lines(known)
        # Another version may know others, and how they end.
        for other in held:
            if other.scope not in {*Scope} or other.cause not in {*Cause}:
                why = standstill.why(other.cause, other.message)
                yield escape(f"Parked: {other.scope} {other.name}".rstrip() + f". {why}")
