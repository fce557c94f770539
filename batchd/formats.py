"""The formats of result, summary and status, version 1.

``results`` and the daemon fill them; the JSON Schemas derive from them.

Numbers are numbers, moments are ISO 8601 in UTC with Z, durations are seconds. Fields may be
added; none is renamed or removed within version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from batchd.records import (
    STANDARD,
    BatchStatus,
    ErrorInfo,
    Evaluation,
    Purpose,
    Reason,
    TaskStatus,
    WorkspaceKind,
)


class UsageV1(Struct, frozen=True, kw_only=True):
    """Tokens, as the provider counts them."""

    calls: int
    input_tokens: int
    #: The part of the input that was read from the provider's prompt cache.
    cached_input_tokens: int
    output_tokens: int
    #: The part of the output that was spent on reasoning.
    reasoning_tokens: int
    total_tokens: int
    average_tokens_per_call: int
    #: Whether any of it was counted by batchd because the provider sent no usage.
    estimated: bool
    #: The part of the input that was written to that cache, and of it what is kept there for an
    #: hour or longer. Left out of the oldest results, like what follows.
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    #: The input of calls whose provider says how much of it came from its cache.
    cache_reported_tokens: int = 0
    #: The part of that which did, 0 to 1; null: no provider says.
    cache_share: float | None = None


class TotalUsageV1(UsageV1, frozen=True, kw_only=True):
    """Tokens of all calls."""

    #: Calls without a recorded answer that may have been paid.
    unsettled_calls: int
    by_purpose: Mapping[Purpose, UsageV1]


class TierV1(Struct, frozen=True, kw_only=True):
    """What a service tier has served."""

    calls: int
    input_tokens: int
    output_tokens: int
    #: null: no price is known.
    cost: float | None


class ComparedV1(Struct, frozen=True, kw_only=True):
    """What the same tokens would have cost with another model."""

    model: str
    #: null: no price is known.
    total: float | None


class CostV1(Struct, frozen=True, kw_only=True):
    """Money. null where no price is known, never 0."""

    currency: str
    input: float | None
    output: float | None
    total: float | None
    #: What calls without a recorded answer may have cost at most.
    unsettled: float | None
    #: ``genai-prices`` or ``config``; null where no price is known.
    price_source: str | None
    compare: tuple[ComparedV1, ...]
    #: What the provider's prompt cache saved; null: no provider says, or no price is known. Left
    #: out of the oldest results, like what follows.
    cache_saved: float | None = None
    #: By the service tier that served them: ``standard``,
    #: ``flex``, ``priority``, or the provider's own word.
    tiers: Mapping[str, TierV1] = field(default_factory=dict)


class TimingV1(Struct, frozen=True, kw_only=True):
    """Moments in UTC, durations in seconds."""

    queued_at: str
    #: null: it never started.
    started_at: str | None
    finished_at: str
    #: Until it was first started.
    queued_s: float
    #: Without a slot, since it was started.
    parked_s: float
    #: In its slot, until its calls might go: limits of rate and of calls at a time, backoffs, a
    #: disk without room. Left out of the oldest results.
    waited_s: float = 0.0
    #: At work: all the rest.
    run_s: float
    #: Of it, waiting for model answers.
    model_s: float
    #: Of it, running commands.
    tool_s: float


class FilesV1(Struct, frozen=True, kw_only=True):
    """Paths below the task's directory that changed; null where they were too many to list, or the
    task ended before batchd looked.
    """

    created: tuple[str, ...]
    modified: tuple[str, ...]
    deleted: tuple[str, ...]


class RunsCodeV1(Struct, frozen=True, kw_only=True):
    """A file that was changed, and that other programs run
    or obey when somebody uses the directory.
    """

    #: Below the task's directory; ``.``: of all of it, since there was too much to look at.
    path: str
    #: ``created`` or ``modified``.
    change: str
    #: Whose programs: ``git``, ``editors``, ``shells``, ``agents`` or ``tools``;
    #: empty: no one could look into it.
    by: str
    #: The command that shows it, and runs nothing.
    show: str


class WorkspaceV1(Struct, frozen=True, kw_only=True):
    """The clone or copy that the task worked on."""

    #: ``clone`` or ``copy``.
    kind: WorkspaceKind
    #: The repository, or the directory.
    source: str
    #: The branch, tag or commit that was asked for; empty: what the repository had checked out.
    ref: str
    #: The commit that it began at; of a copy, git's name of the whole.
    base: str
    #: The clone's branch; empty: a copy has none.
    branch: str


class ChangeV1(Struct, frozen=True, kw_only=True):
    """What became of one file of a clone or copy."""

    path: str
    #: Lines; null: it is no text.
    added: int | None
    removed: int | None


class PatchV1(Struct, frozen=True, kw_only=True):
    """The patch that makes a task's changes elsewhere."""

    #: The file beside this one; null: there is none.
    file: str | None
    #: How many files it changes, those included that it leaves out.
    files: int
    bytes: int
    sha256: str
    #: Files whose changes it leaves out, since it would be too large.
    left_out: tuple[str, ...] = ()
    #: Whether it holds a secret, so that batchd's user alone may read it.
    withheld: bool = False
    #: What else it lacks, in words: files that could not be read,
    #: repositories within the clone or copy.
    lacks: str | None = None
    #: Why there is none.
    problem: str | None = None


class ResultV1(Struct, frozen=True, kw_only=True):
    """The result of one task: ``outbox/BATCH/TASK.json``."""

    schema: str
    batch: str
    task: str
    status: TaskStatus
    #: null exactly where the status is ``completed``.
    reason: Reason | None
    first_prompt: str
    dir: str
    model: str
    #: The service tier that its calls asked for. Left out of the oldest results.
    service_tier: str = STANDARD
    #: The model's last message.
    answer: str
    #: Rounds of work and evaluation.
    iterations: int
    #: The last verdict.
    evaluation: Evaluation | None
    #: The number that the last line of its check's output gives, as in ``score: 0.83``.
    #: Left out of older results.
    score: float | None = None
    #: Whether its check gave two verdicts on the same files. Left out of older results.
    flaky: bool = False
    usage: TotalUsageV1
    cost: CostV1
    timing: TimingV1
    attempts: int
    files: FilesV1 | None
    #: Why its files may be empty, old or gone, now or after a power cut, in words;
    #: null: they are on the disk. Left out of older results.
    at_risk: str | None = None
    #: null: it worked in a directory in place, or never began.
    #: Left out of older results, like what follows.
    workspace: WorkspaceV1 | None = None
    #: What it has changed in its clone or copy, by file, at most 1,000;
    #: null: it has neither, or no one looked.
    changes: tuple[ChangeV1, ...] | None = None
    #: null: it has no clone or copy, has changed nothing, or ended before batchd looked:
    #: then ``changes`` is null too.
    patch: PatchV1 | None = None
    #: What it changed that runs code when the directory is used; null: no one looked, as where its
    #: worker died. Left out of the oldest results.
    runs_code: tuple[RunsCodeV1, ...] | None = ()
    #: Links of its making that led out of the directory, to what only a check itself has, so that
    #: a round was refused: by path, with what they held. Left out of older results.
    links_out: Mapping[str, str] = field(default_factory=dict)
    #: Its limits of which it used 80 % or more, by key, as parts of 1; of a task that ended over
    #: a limit none. Left out of older results.
    near_limits: Mapping[str, float] = field(default_factory=dict)
    error: ErrorInfo | None
    #: The file beside this one that holds every step; null: the task never started.
    transcript: str | None
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]


class SummaryTaskV1(Struct, frozen=True, kw_only=True):
    """One task's line in a summary."""

    task: str
    status: TaskStatus
    reason: Reason | None
    iterations: int
    total_tokens: int
    cost: float | None
    run_s: float
    #: The error's message, if any.
    message: str | None
    #: Files that it changed and that run code when its directory is used; null: no one looked.
    runs_code: int | None = 0
    #: As in its result. Left out of older summaries.
    near_limits: Mapping[str, float] = field(default_factory=dict)


class GroupV1(Struct, frozen=True, kw_only=True):
    """The tasks that have a model, or a tag, beside those that have others."""

    name: str
    tasks: int
    #: Those of them that completed, and their part of all, 0 to 1.
    accepted: int
    success_rate: float
    #: Rounds, on average of those that began; null: none did.
    iterations_mean: float | None
    #: The median of how long those that began were at work.
    run_s_median: float | None
    #: What all of them cost, judges included; null: the price of a call is not known.
    cost: float | None
    #: That for each that completed; null: none did, too.
    cost_per_accepted: float | None


class ProblemV1(Struct, frozen=True, kw_only=True):
    """One thing wrong with a refused file."""

    place: str
    message: str
    hint: str


class SummaryV1(Struct, frozen=True, kw_only=True):
    """The summary of a batch, written last of all: ``outbox/BATCH/summary.json``."""

    schema: str
    batch: str
    #: ``cancelled``: orders ended all that had not completed.
    #: ``finished``: any other end. ``rejected``: the file was refused.
    status: Literal["finished", "cancelled", "rejected"]
    request: str
    retry_of: str | None = None
    received_at: str
    finished_at: str
    #: From the drop to the last result.
    wall_s: float
    #: How many tasks ended in each final status.
    counts: Mapping[TaskStatus, int]
    total: int
    #: Completed tasks of all, 0 to 1; null for a refused file.
    success_rate: float | None
    usage: TotalUsageV1
    cost: CostV1
    tasks: tuple[SummaryTaskV1, ...]
    #: Its tasks by their model, and by each of their tags, in the order in which these came first.
    #: Left out of older summaries, like what follows.
    by_model: tuple[GroupV1, ...] = ()
    by_tag: tuple[GroupV1, ...] = ()
    #: Why the file was refused.
    errors: tuple[ProblemV1, ...] = ()


class StatusDaemonV1(Struct, frozen=True, kw_only=True):
    """The daemon that wrote the status."""

    pid: int
    version: str
    started_at: str
    #: ``draining``: it starts nothing any more. ``stopped``: it has ended; this is its last word.
    state: Literal["running", "draining", "stopped"]


class StatusTasksV1(Struct, frozen=True, kw_only=True):
    """Tasks that have not ended, counted."""

    #: Not begun.
    queued: int
    running: int
    #: Begun, and waiting for something without a slot.
    parked: int


class StatusDayV1(Struct, frozen=True, kw_only=True):
    """The day's money in US dollars, counted in UTC."""

    #: null: it has none.
    limit_usd: float | None
    #: What may have been paid counts as spent.
    spent_usd: float
    #: Set aside for calls under way.
    reserved_usd: float


class StatusWaitV1(Struct, frozen=True, kw_only=True):
    """What waits for one cause."""

    #: What waits: ``all``, ``day`` (all, for the day's money),
    #: ``provider``, ``model``, ``batch`` or ``task``.
    scope: str
    #: ``paused``, ``auth``, ``quota``, ``provider_unavailable``, ``budget``, ….
    cause: str
    #: The batch that it is, or whose tasks they are; null for the other scopes.
    batch: str | None
    #: How many there are.
    count: int
    #: The first of them.
    since: str


class StatusTroubleV1(Struct, frozen=True, kw_only=True):
    """Something that the daemon cannot do."""

    #: As the log calls it: ``outbox_trouble``, ….
    what: str
    since: str


class StatusBatchV1(Struct, frozen=True, kw_only=True):
    """One batch, in counts."""

    batch: str
    status: BatchStatus
    received_at: str
    #: When its last file was written; null: it is not yet.
    finished_at: str | None
    #: How many of its tasks stand how; what is not named is 0.
    counts: Mapping[TaskStatus, int]
    total: int
    total_tokens: int
    #: In US dollars; null: a price is missing.
    cost: float | None
    #: What calls without a recorded answer may have cost at most.
    unsettled: float


class StatusV1(Struct, frozen=True, kw_only=True):
    """How the daemon stands: ``outbox/status.json``.
    It names no task, provider or path, and holds no text of a task.
    """

    schema: str
    #: When this was written.
    at: str
    #: Once it is older, in seconds, no daemon is there that would have written it again.
    stale_after_s: int
    daemon: StatusDaemonV1
    #: Tasks that can be at work at once.
    slots: int
    tasks: StatusTasksV1
    day: StatusDayV1
    waits: tuple[StatusWaitV1, ...]
    troubles: tuple[StatusTroubleV1, ...]
    #: The newest first: of those that have not ended 200, of the others 20.
    batches: tuple[StatusBatchV1, ...]
    #: Batches that have not ended and are not among them.
    left_out: int


def json_schema(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of a published format."""
    (made,), definitions = components(kind)
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **made, "$defs": definitions}


def components(*kinds: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what stands for each kind in a JSON Schema, and the definitions of all;
    they keep the names under which they were published.
    """
    text = msgspec.json.encode(msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}"))
    made: tuple[list[dict[str, Any]], dict[str, Any]] = msgspec.json.decode(
        text.replace(b"TaskStatus", b"Status")
    )
    return made


def schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of ``result``, ``summary`` or ``status``."""
    return json_schema({"result": ResultV1, "summary": SummaryV1, "status": StatusV1}[kind])
