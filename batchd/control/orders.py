"""Orders: one class a verb, beside its answer.

Its fields are the arguments of its command, the JSON on the socket, and what the page and `top`
fill in. Its docstring is its line in the help; it has the question that is asked before it is
given, and the words of its answer. The daemon answers all of them in one ``match``
(``daemon/commands.py``). A new one is a class here, named in ``ORDERS`` and in the list of
commands, and an arm there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import msgspec

from batchd import decoders, words
from batchd.control.requests import A, Field, Order
from batchd.control.status import ShownParking
from batchd.errors import UsageError
from batchd.gone import GONE_TASK_KEYS
from batchd.log import escape
from batchd.records import Parking, Scope, TargetCounts
from batchd.spool.ulid import ulid
from batchd.words import counted


def _switch(flag: str, said: str) -> Field:
    """Return an option that stands for yes."""
    name = flag.removeprefix("--")
    return Field(f"{name} is true or false", flag, action="store_true", help=said)


def _whole(target: str) -> str:
    return "/".join(filter(None, words.split_target(target)))


def _text(target: str | tuple[str, ...]) -> str:
    return target if isinstance(target, str) else words.listed(target)


#: ``BATCH`` or ``BATCH/TASK``, one or several.
Targets: TypeAlias = Annotated[
    str | tuple[str, ...],
    Field(
        "it needs a target: BATCH or BATCH/TASK",
        "target",
        nargs="+",
        metavar="BATCH[/TASK]",
        type=_whole,
    ),
]


def _message(said: str) -> Field:
    return Field("a message is text", "-m", "--message", default="", help=said)


# cancel


class EndedBefore(msgspec.Struct, frozen=True, kw_only=True):
    """A target that had nothing left to end when the order came."""

    #: ``BATCH`` or ``BATCH/TASK``.
    target: str
    #: How many of its tasks ended in each final status; none: the file was refused.
    counts: Mapping[str, int]


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Cancel``: the ends are durable."""

    #: Tasks; those left out ended by themselves before the order reached them.
    cancelled: int
    ended: tuple[EndedBefore, ...] = ()


class Cancel(Order[Cancelled], frozen=True, kw_only=True):
    """End batches or tasks."""

    epilog = (
        "Tasks that have ended stay as they are, and are named. Exit code 0 if everything "
        "named is now cancelled, or some of it was."
    )
    examples = ("batchd cancel evening", "batchd cancel evening/001")

    target: Targets
    #: Why; stands in the results.
    message: Annotated[str, _message("the reason, which the results show")] = ""

    def question(self, counts: TargetCounts) -> tuple[str, str]:
        """Return what is asked: how many tasks it ends."""
        name, left = _text(self.target), counts.left
        if not left:
            raise UsageError(f"{name} has ended already: there is nothing to cancel")
        have = "has" if left == 1 else "have"
        what = "" if "/" in name else f", {counted(left, 'task')} that {have} not ended"
        ends = (
            "It ends now, as cancelled, and so does what comes after it. This cannot be taken back."
        )
        return f"Cancel {name}{what}?", ends

    def say(self, answer: Cancelled) -> Iterator[str]:
        """Say how many tasks were ended, and how what had ended before did so."""
        before = {each.target for each in answer.ended}
        given = (self.target,) if isinstance(self.target, str) else self.target
        if names := [name for name in given if name not in before]:
            yield f"{words.listed(names)}: {counted(answer.cancelled, 'task')} cancelled"
        for ended in answer.ended:
            if not ended.counts:
                yield f"{ended.target} was refused when it came: it has no tasks"
            elif "/" in ended.target:
                (status,) = ended.counts
                yield f"{ended.target} has ended already: {words.status(status)}"
            else:
                yield f"{ended.target} has ended already: {words.outcomes(ended.counts)}"


# retry


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A new run of old tasks."""

    #: Its name, and that of the one whose tasks they are.
    batch: str
    retry_of: str | None
    tasks: int


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Retry``: the tasks are queued again."""

    runs: tuple[NewRun, ...]
    #: The names of the runs.
    batches: tuple[str, ...] = ()
    #: The keys of old tasks that are gone, and were left out; unset: none was.
    dropped: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class Retry(Order[Retried], frozen=True, kw_only=True):
    """Run batches or tasks again, or only what failed."""

    examples = ("batchd retry --failed evening",)

    target: Targets
    #: Only what of them did not complete, and what comes after it.
    failed: Annotated[
        bool,
        _switch("--failed", "only tasks that did not complete, and tasks that come after them"),
    ] = False
    #: Of the command alone.
    yes: ClassVar[Annotated[bool, _switch("--yes", "do not ask about tasks that have completed")]]
    #: With this one, ``PROVIDER/MODEL``, in place of their own; empty: with their own.
    model: Annotated[
        str,
        Field(
            "a model is text: PROVIDER/MODEL",
            "--model",
            metavar="PROVIDER/MODEL",
            help="use this model instead; tasks that wait for a model that is gone are cancelled and run again too",
        ),
    ] = ""
    #: A ULID that marks the order, so that one that is given twice, as its answer was lost, is
    #: carried out once; empty: a new one.
    claim: Annotated[str, Field("a claim is a ULID")] = ""

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``."""
        if args.model == "":
            # As of a variable that is not set: with the tasks' own models it is another order.
            raise UsageError("--model is empty: give PROVIDER/MODEL, as in openai/gpt-6-luna")
        return cls.of({**vars(args), "claim": ulid()})

    def question(self, counts: TargetCounts) -> tuple[str, str]:
        """Return what is asked: how many tasks run again, and what was paid for before."""
        name, _, completed, failed = _text(self.target), *counts
        if not (count := failed if self.failed else failed + completed):
            what = "has failed" if self.failed else "has ended"
            raise UsageError(f"nothing of {name} {what}: there is nothing to run again")
        what = "failed task" if self.failed else "task"
        asked = name if "/" in name else f"{counted(count, what)} of {name}"
        done = counted(completed, "task")
        cost = "costs" if completed == 1 else "cost"
        paid = f"{done} completed before, and {cost} money again."
        if self.model:
            asked += f" with {self.model}"
        return f"Run {asked} again?", "" if self.failed or not completed else paid

    def say(self, answer: Retried) -> Iterator[str]:
        """Say what the new runs are."""
        for run in answer.runs:
            yield f"{run.batch}: {counted(run.tasks, 'task')} of {run.retry_of} queued again"
        for key in answer.dropped or ():
            yield f"without {key}, which is gone: {GONE_TASK_KEYS.get(key, '')}"


# pause, resume

_SCOPE = Field(f"no scope; the scopes are {', '.join(Scope)}")


class _ScopeOrder(Order[A], frozen=True, kw_only=True):
    """An order about a batch, a task, a provider, a model or everything."""

    #: None: everything but what is uncertain.
    scope: Annotated[Scope | None, _SCOPE] = None
    #: Of the provider, model, batch or task.
    name: Annotated[str, Field("a name is text")] = ""

    @classmethod
    def arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of its command: one of those that name a scope."""
        which = parser.add_mutually_exclusive_group()
        which.add_argument("target", nargs="?", metavar="BATCH[/TASK]", type=_whole)
        which.add_argument("--all", action="store_true", help="everything")
        which.add_argument("--provider", metavar="NAME", help="what needs this provider's models")
        which.add_argument("--model", metavar="PROVIDER/MODEL", help="what needs this model")
        super().arguments(parser)

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``."""
        named = (
            (Scope.ALL, "" if args.all else None),
            (Scope.PROVIDER, args.provider),
            (Scope.MODEL, args.model),
            (Scope.TASK if "/" in (args.target or "") else Scope.BATCH, args.target),
        )
        scope, name = next((each for each in named if each[1] is not None), (None, ""))
        return cls.of({**vars(args), "scope": scope, "name": name})

    def command(self) -> str:
        """Return the command line that gives it."""
        return f"{super().command()} {words.option(self.scope or '', self.name)}".rstrip()


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Pause``: nothing of the scope starts any more."""

    #: Tasks that wait now, or will at their next durable point.
    parked: int
    #: Of these, those that work until they are judged: only their judge is paused.
    judged: int = 0


class Pause(_ScopeOrder[Paused], frozen=True, kw_only=True):
    """Pause a batch, a task, a provider or everything.

    Nothing of it starts, and what runs gives its slot back.
    """

    examples = ("batchd pause evening", "batchd pause --all")

    scope: Annotated[Scope, _SCOPE]
    #: Why; ``status`` shows it.
    message: Annotated[str, _message("the reason, which `status` shows")] = ""

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``: it needs a scope."""
        try:
            return super().given(args)
        except msgspec.ValidationError:
            raise UsageError(
                "name one: BATCH, BATCH/TASK, --provider NAME, --model PROVIDER/MODEL, or --all"
            ) from None

    def question(self, _counts: TargetCounts) -> tuple[str, str]:
        """Return what is asked."""
        what = words.named(self.scope, self.name)
        stops = "Nothing of it starts, and what runs stops at its next step, until it is resumed."
        return f"Pause {what}?", stops

    def say(self, answer: Paused) -> Iterator[str]:
        """Say how many tasks wait now, and how to go on."""
        judged = answer.judged
        only = (
            f"; {judged:,} of them need it only as a judge, and work until then" if judged else ""
        )
        what = words.named(self.scope, self.name)
        tasks = counted(answer.parked, "task") if answer.parked else "no task was using it"
        yield f"{what} is paused: {tasks}{only}"
        yield f"To go on: batchd resume {words.option(self.scope, self.name)}"


class ResumedScope(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Resume``: the scope goes on, as far as nothing else holds it."""

    #: Things that were parked and are no more, those that are tried included.
    resumed: int
    #: Providers and models that must answer one call first.
    trying: tuple[str, ...] = ()
    #: What it still waits for.
    held: tuple[ShownParking, ...] = ()


class Resume(_ScopeOrder[ResumedScope], frozen=True, kw_only=True):
    """Let what waits go on."""

    epilog = (
        "Without arguments, everything that is paused or waits goes on, except tasks that are "
        "uncertain after `batchd restore`: name those. batchd tries a provider or model that failed "
        "with one call first, and reads its key again; if that call fails, its tasks wait on."
    )
    examples = ("batchd resume --all",)

    def question(self, _counts: TargetCounts) -> tuple[str, str]:
        """Return what is asked."""
        what = words.named(self.scope or "", self.name)
        return f"Let {what} go on?", "What it starts costs money."

    def say(self, answer: ResumedScope) -> Iterator[str]:
        """Say what goes on, what must answer first, and what still waits."""
        what, trying, held = words.named(self.scope or "", self.name), answer.trying, answer.held
        everything = self.scope in {None, Scope.ALL}
        if not answer.resumed and not (everything and held):
            yield "nothing is paused or waits" if everything else f"{what} is not paused"
        elif answer.resumed > len(trying):
            freed = everything or not held
            yield f"{what} goes on" if freed else f"{what} itself is no longer paused"
        for name in trying:
            yield f"{words.named(Scope.of(name), name)} is tried with one call first; once it answers, its tasks go on"
        if held:
            yield "Still waiting:" if everything else "It still waits:"
        # Another version may know others, and how they end.
        known, others = [], []
        for each in held:
            try:
                known.append(decoders.convert(msgspec.to_builtins(each), Parking))
            except msgspec.ValidationError:
                others.append(each)
        yield from words.parked_lines(known)
        for each in others:
            why = words.why(each.cause, each.message)
            yield escape(f"Waiting: {each.scope} {each.name}".rstrip() + f". {why}")


# priority


class Prioritised(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Priority``: places in the queue have changed."""

    #: Tasks that had not ended.
    tasks: int


class Priority(Order[Prioritised], frozen=True, kw_only=True):
    """Let batches or tasks go before others."""

    examples = ("batchd priority evening 10",)

    target: Targets
    #: Of 32 bits; higher goes first. Behind the targets: argparse takes "-5" for an option before.
    priority: Annotated[
        int,
        Field(
            "a priority is a whole number; higher goes first",
            "priority",
            type=int,
            metavar="N",
            help="higher numbers go first; the default is 0",
        ),
    ]

    def say(self, answer: Prioritised) -> Iterator[str]:
        """Say how many tasks have it."""
        yield f"{_text(self.target)}: {counted(answer.tasks, 'task')} with priority {self.priority}"


# nice


class Niced(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Nice``: places in the queue have changed."""

    #: Tasks that had not ended, and the priorities that they have now, the lowest first.
    tasks: int
    priorities: tuple[int, ...]


class Nice(Order[Niced], frozen=True, kw_only=True):
    """Add to the priority of batches or tasks, or take from it."""

    examples = ("batchd nice evening +5", "batchd nice evening -5")
    adds = True

    target: Targets
    by: Annotated[
        int,
        Field(
            "by is a whole number: +5, -5",
            "by",
            type=int,
            metavar="N",
            help="how much to add, as +5, or to take away, as -5; higher numbers go first",
        ),
    ]

    def say(self, answer: Niced) -> Iterator[str]:
        """Say how many tasks have which priority now."""
        what = "priority" if len(answer.priorities) == 1 else "priorities"
        found = words.listed([*map(str, answer.priorities)])
        yield f"{_text(self.target)}: {counted(answer.tasks, 'task')} with {what} {found}"


# prune


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Prune``: room is given back."""

    #: Batches whose journals went, and their bytes.
    pruned: int
    bytes: int
    #: Folders that went, and their bytes.
    folders: int = 0
    folder_bytes: int = 0
    #: Mirrors of repositories that no clone begins at any more, and their bytes.
    mirrors: int = 0
    mirror_bytes: int = 0
    #: What was left alone, and why.
    problems: tuple[str, ...] = ()


class Prune(Order[Pruned], frozen=True, kw_only=True):
    """Free the space that finished batches take."""

    epilog = (
        "It prunes finished batches only; their statuses, tokens, money and names stay known. "
        "Without --yes it changes nothing, and shows what it would do."
    )
    examples = ("batchd prune --older-than 30",)

    #: Only of those that were published so long ago, or earlier.
    older_than_days: Annotated[
        int | float,
        Field(
            "older_than_days is a number of days, from 0 on",
            "--older-than",
            dest="older_than_days",
            type=float,
            default=0.0,
            metavar="DAYS",
            help="only batches that finished at least this many days ago",
        ),
    ] = 0
    #: Their folders in the outbox too.
    outbox: Annotated[bool, _switch("--outbox", "remove their folders in the outbox too")] = False
    #: Of the command alone.
    yes: ClassVar[Annotated[bool, _switch("--yes", "do it")]]

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``."""
        if not 0 <= args.older_than_days < 1e6:  # no store is that old
            raise UsageError("--older-than needs a number of days, 0 or more")
        return super().given(args)

    def say(self, answer: Pruned) -> Iterator[str]:
        """Say what went, and what it took."""
        line = f"{counted(answer.pruned, 'batch')} pruned: {words.megabytes(answer.bytes)}"
        if self.outbox:
            folders, size = counted(answer.folders, "folder"), words.megabytes(answer.folder_bytes)
            line += f"; {folders} removed: {size}"
        if answer.mirrors:
            mirrors, size = counted(answer.mirrors, "mirror"), words.megabytes(answer.mirror_bytes)
            line += f"; {mirrors} removed: {size}"
        yield line


# tune


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Tune``: all that is changed now."""

    #: By ``SECTION.KEY``, without secrets.
    overrides: Mapping[str, str]


class Tune(Order[Tuned], frozen=True, kw_only=True):
    """Change the running daemon's configuration.

    It lasts until the daemon ends. Without changes it only asks what is changed.
    """

    epilog = (
        "Example: `batchd tune pool.processes=8 budget.per_day_usd=20`. Changes outlast "
        "SIGHUP, and end with the daemon or with `tune --reset`. Without arguments, tune "
        "shows what is changed."
    )
    examples = ("batchd tune budget.per_day_usd=20",)
    needs_daemon = "`tune` changes a running daemon; for the next one, edit config.toml"

    #: By ``SECTION.KEY``: the value as TOML has it.
    changes: Annotated[
        Mapping[str, str],
        Field(
            "tune needs SECTION.KEY=VALUE",
            "changes",
            nargs="*",
            metavar="SECTION.KEY=VALUE",
            secret=True,
        ),
    ] = msgspec.field(default_factory=dict)
    #: First take all earlier changes back.
    reset: Annotated[bool, _switch("--reset", "first undo all earlier changes")] = False

    @classmethod
    def given(cls, args: argparse.Namespace) -> Self:
        """Return the order that a command line gives. Raises ``UsageError``."""
        changes = {}
        for change in args.changes:
            key, equals, value = change.partition("=")
            if not equals or not key.strip():
                raise UsageError(f"{escape(change)} is not SECTION.KEY=VALUE")
            changes[key.strip()] = value
        return cls.of({**vars(args), "changes": changes})

    def say(self, answer: Tuned) -> Iterator[str]:
        """Say what is changed."""
        if not answer.overrides:
            yield "Nothing is changed: the daemon works as config.toml says."
        yield from (f"{key} = {value}" for key, value in answer.overrides.items())


#: By its verb, what people can order.
ORDERS: Mapping[str, type[Order[Any]]] = {
    kind.verb(): kind for kind in (Cancel, Retry, Pause, Resume, Priority, Nice, Prune, Tune)
}
