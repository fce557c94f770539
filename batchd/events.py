"""The journal's vocabulary.

A task is what its events say: ``taskstate`` folds them, ``store`` keeps them.

An event's class name and fields are stored for years: add fields with a default, never
rename or remove one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from batchd import decoders
from batchd.records import (
    STANDARD,
    Answer,
    Base,
    CheckIn,
    Cost,
    ErrorInfo,
    Evaluation,
    Failure,
    FileStamp,
    ModelSetup,
    Price,
    Purpose,
    Reason,
    TaskLimits,
    TaskStatus,
    Tier,
    ToolCall,
    Trigger,
    Usage,
)

#: What became of a tool call: ``refused`` for bad arguments, ``killed`` where it passed a limit,
#: ``interrupted`` where a crash leaves it in doubt.
ToolOutcome: TypeAlias = Literal["ran", "refused", "timed_out", "killed", "interrupted"]
#: Why a task gives its slot back: to wait, or because the daemon stops.
SuspendCause: TypeAlias = Literal["park", "drain"]


class Terms(Struct, frozen=True, kw_only=True):
    """The terms that a reload of the configuration must not change under a running task."""

    model: ModelSetup
    judge: ModelSetup
    #: The system prompt, as sent; written when the task starts.
    system_prompt: str = ""
    #: What the first message says of the directory before the prompt, as sent; and which files it
    #: quotes. Empty in older journals.
    opening: str = ""
    quoted: tuple[str, ...] = ()
    #: The directory's files at the start: by path. None: too many to list.
    files: Mapping[str, FileStamp] | None = None
    #: What other programs run when somebody uses the directory, at the start, by path. None: no one
    #: looked, as in the oldest journals.
    triggers: Mapping[str, Trigger] | None = None
    #: Links that led out of the directory at the start, by path, with what they hold. None: no one
    #: looks for new ones, as in older journals.
    links: Mapping[str, str] | None = None
    #: What the directory held at the start, in bytes on the disk. None: it was made for the task,
    #: it holds more than can be measured, or no one looked, as in older journals.
    held: int | None = None
    #: What its directory began as; None: empty, or it is another's.
    base: Base | None = None
    #: Where a check runs: ``apart``, or in the task's own /tmp and home, as in the oldest journals.
    check_in: CheckIn = "task"
    #: Whether what commands leave running goes on, as the model has read.
    keep_processes: bool = False
    #: Whether circles of several calls are loops, and calls that do nothing are stops;
    #: else as the oldest journals have it.
    circles: bool = False
    #: Whether the model is given what the directory's owner says to agents.
    agents_md: bool = False
    #: Models to compare the cost with.
    compare: tuple[ModelSetup, ...] = ()
    #: Whether a money limit of the task, its batch or the day is active.
    capped: bool = False
    #: What the task may use up. None: what its record says, as in older journals.
    limits: TaskLimits | None = None

    def setup(self, purpose: Purpose) -> ModelSetup:
        """Return how the model for ``purpose`` is called."""
        return self.judge if purpose is Purpose.JUDGE else self.model


class TaskStarted(Struct, frozen=True, kw_only=True):
    """The first event of every task that a worker took up."""

    at: float
    terms: Terms
    #: The machine on which that was; unset: the daemon's,
    #: so that older journals read as they were written.
    node: str | UnsetType = UNSET
    #: What that machine calls the time since it was last started;
    #: unset: it is not known, or makes no difference.
    boot: str | UnsetType = UNSET


class Resumed(Struct, frozen=True, kw_only=True):
    """A later attempt took the task up again; the time since the event before was no work."""

    at: float
    attempt: int
    #: The terms from here on, of a task that no model has answered yet;
    #: None: those that it started under.
    terms: Terms | None = None
    #: The machine on which that was; unset: the daemon's,
    #: so that older journals read as they were written.
    node: str | UnsetType = UNSET
    #: What that machine calls the time since it was last started;
    #: unset: it is not known, or makes no difference.
    boot: str | UnsetType = UNSET
    #: What the model learns where the machine was started since, and files may be lost by that.
    lost: str | UnsetType = UNSET


class CallStarted(Struct, frozen=True, kw_only=True):
    """A request may be on its way: committed with its permit, before it is sent."""

    at: float
    purpose: Purpose
    #: Our estimate.
    input_tokens: int
    max_output_tokens: int
    #: What it may cost at most; None where no price is known.
    reserved_usd: float | None = None
    #: The tokens of input and of output that this is the price of.
    reserved_tokens: tuple[int, int] | None = None
    #: The service tier that it asks for.
    tier: Tier = STANDARD
    #: Of the time since the event before: waiting for the permit, which is no time at work.
    waited_s: float = 0.0


class CallAnswered(Struct, frozen=True, kw_only=True):
    """The model answered; this is paid, and never asked for again."""

    at: float
    purpose: Purpose
    answer: Answer
    #: The tool calls to perform: native ones, or what the text protocol found in the content.
    calls: tuple[ToolCall, ...] = ()
    #: Whether ``calls`` were read out of the answer's text and are answered in text.
    text_protocol: bool = False
    #: What the provider sent as its usage, where no call can come to that;
    #: the answer's is then what was set aside.
    disbelieved: Usage | None = None
    #: The service tier that served it: one of ``TIERS``, or the provider's own word.
    tier: str = STANDARD
    #: What it costs, where that is not the price of its usage in the standard tier.
    cost: Cost | None = None
    #: Why ``cost`` is not what the provider says, nor the known price of its usage.
    doubt: str = ""
    #: When its request was sent, by the daemon's clock; 0: not known, as in older journals.
    sent_at: float = 0.0

    def paid(self, price: Price | None) -> Cost | None:
        """Return what it cost, of a model with this price; None: that is not known."""
        if self.cost is not None:
            return self.cost
        at, usage = price and price.at(self.tier), self.answer.usage
        return at.sent(self.sent_at, usage).cost(usage) if at else None

    def saved(self, price: Price | None) -> float | None:
        """Return what the cache saved on it, in dollars; None:
        the provider does not say, or no price is known.
        """
        at, usage = price and price.at(self.tier), self.answer.usage
        known = at is not None and usage.reported_tokens and self.disbelieved is None
        return at.sent(self.sent_at, usage).saved(usage) if at and known else None


class CallFailed(Struct, frozen=True, kw_only=True):
    """The request brought no answer. Whether it is sent again, the governor says."""

    at: float
    failure: Failure


class CallDenied(Struct, frozen=True, kw_only=True):
    """The governor gave no permit: the task ends for this reason."""

    at: float
    status: TaskStatus
    reason: Reason
    error: ErrorInfo
    #: Of the time since the event before: waiting for the permit, which is no time at work.
    waited_s: float = 0.0


class ToolRan(Struct, frozen=True, kw_only=True):
    """A tool call has its output, whether it ran, was refused or was interrupted."""

    at: float
    call: ToolCall
    #: What the model sees, already cut to the cap.
    output: str
    #: The command's; None where nothing ran, or it was killed at its time limit.
    exit_code: int | None = None
    seconds: float = 0.0
    outcome: ToolOutcome = "ran"
    #: Where the command wanted to go and might not, a line each.
    refused: tuple[str, ...] = ()
    #: Which limit of the sandbox it passed, and by what.
    excess: str = ""
    #: Of the time since the event before: waiting until that was durable, which is no time at work.
    waited_s: float = 0.0
    #: What commands have left running, by name.
    left: tuple[str, ...] = ()
    #: Whether it changed files; None: that was not looked at.
    changed: bool | None = None
    #: Whether it failed since it asked for input, of which there is none.
    asked_input: bool = False
    #: Whether it failed since it wanted a screen, or a browser, of which there is none.
    asked_screen: bool = False
    #: Whether its output says what little is left of the task's limits.
    noticed: bool = False


class RoundEvaluated(Struct, frozen=True, kw_only=True):
    """One evaluator's verdict on the round.

    A round is done when the last evaluator asked for says so.
    """

    at: float
    evaluation: Evaluation
    #: Whether this verdict settles the round: it refused, or nothing is left to ask.
    final: bool = True
    #: How long a command took.
    seconds: float = 0.0
    #: Where it wanted to go and might not, a line each.
    refused: tuple[str, ...] = ()
    #: Which limit of the sandbox it passed, and by what.
    excess: str = ""
    #: Of the time since the event before: waiting until that was durable, which is no time at work.
    waited_s: float = 0.0
    #: The links that it refused the round for: by path, with what they hold.
    links: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Whether the round ended since the model repeated itself, and not since it was done.
    looped: bool = False
    #: Whether it came before the first call, of no round.
    first: bool = False
    #: What the last line of a check says.
    score: float | None = None
    #: Whether a check gave two verdicts on the same files.
    flaky: bool = False


class Compacted(Struct, frozen=True, kw_only=True):
    """The conversation was shortened to fit the model's window."""

    at: float
    #: Positions of tool outputs now replaced by a stub.
    elided: tuple[int, ...] = ()
    #: Messages in ``[start, end)`` are replaced by the summary.
    start: int = 0
    end: int = 0
    summary: str | None = None
    #: Whether the summary stands as the model's own message, and a request to go on behind it, so
    #: that the roles alternate; in the oldest journals it is a message of the user.
    own: bool = False
    #: Positions of messages cut in their middles, each with the characters that are kept.
    clipped: tuple[tuple[int, int], ...] = ()
    #: Tokens by the provider's count to one of ours: the conversation is counted again with it.
    scale: float = 1.0
    #: Whether the answers before it go back as neutral text and calls,
    #: not as the items they came in.
    plain: bool = False


class Suspended(Struct, frozen=True, kw_only=True):
    """The task gave its slot back."""

    at: float
    cause: SuspendCause
    message: str = ""
    #: Of the time since the event before: waiting for the permit, which is no time at work.
    waited_s: float = 0.0


class ClockMoved(Struct, frozen=True, kw_only=True):
    """The clock was set, or the machine slept, since the event before: that was no time at work."""

    at: float
    #: How far the clock moved without any time passing; negative where it was set back.
    by_s: float


class CancelRequested(Struct, frozen=True, kw_only=True):
    """Somebody wants the task ended."""

    at: float
    reason: Reason = Reason.USER
    message: str = ""
    #: Of the time since the event before: waiting for the permit, which is no time at work.
    waited_s: float = 0.0


class TaskFinished(Struct, frozen=True, kw_only=True):
    """The last event: the result as it is published, to the byte."""

    at: float
    status: TaskStatus
    reason: Reason | None
    #: The result file's text.
    result: str


Event: TypeAlias = (
    TaskStarted
    | Resumed
    | CallStarted
    | CallAnswered
    | CallFailed
    | CallDenied
    | ToolRan
    | RoundEvaluated
    | Compacted
    | Suspended
    | ClockMoved
    | CancelRequested
    | TaskFinished
)


@cache
def _decoders() -> dict[str, msgspec.json.Decoder[Any]]:
    return {cls.__name__: decoders.decoder(cls) for cls in get_args(Event)}


_FRAME: msgspec.json.Decoder[tuple[str, msgspec.Raw]] = decoders.decoder(tuple[str, msgspec.Raw])


def encode(event: Event) -> bytes:
    """Return an event as it is stored: ``["KIND", {fields}]`` in JSON."""
    return msgspec.json.encode((type(event).__name__, event))


def decode(body: bytes) -> Event:
    """Return the event that ``encode`` made into ``body``.

    Raises ``msgspec.MsgspecError`` or ``KeyError`` where it is none.
    """
    kind, fields = _FRAME.decode(body)
    event: Event = _decoders()[kind].decode(fields)
    return event
