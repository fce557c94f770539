"""Tasks and batches: what was asked for, its limits, what it needs, how it stands and why it waits.

Each limit is defined here, and nowhere else. ``[limits]`` of the configuration inherits the fields
of ``TaskLimits``, ``[limits.ceiling]`` and a task file's ``limits`` are made from them, and
``tests/unit/test_docs.py`` holds config.toml and docs/tasks.md to them. Another limit is a line
here, its two lines of documentation, and the place that enforces it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le
from msgspec import UNSET, Struct, UnsetType

from batchd.records.models import AskedEffort
from batchd.records.money import STANDARD, Tier
from batchd.records.policy import Network

Count: TypeAlias = Annotated[int, Ge(0), Le(10**15)]
Positive: TypeAlias = Annotated[int, Ge(1), Le(10**15)]
Amount: TypeAlias = Annotated[float, Ge(0), Le(10**9)]
Span: TypeAlias = Annotated[float, Gt(0), Le(10**9)]


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a limit, and its unit: a part of a sentence."""

    text: str

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Describe a key in the schema of task files;
        pydantic asks, who defines a limit need not import it.
        """
        return {**handler(schema), "description": f"{self.text[0].upper()}{self.text[1:]}."}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """The limits of a task. 0 means no limit, where its kind of number has a 0."""

    max_iterations: Annotated[Count, Meaning("rounds of work and evaluation")] = 10
    max_calls: Annotated[Count, Meaning("model calls, evaluations and compactions included")] = 100
    max_tokens: Annotated[Count, Meaning("tokens over all calls, input and output together")] = 0
    max_output_tokens: Annotated[Positive, Meaning("output tokens of one call")] = 8192
    max_cost_usd: Annotated[Amount, Meaning("US dollars over all calls")] = 0.0
    timeout_s: Annotated[Amount, Meaning("seconds at work; waiting does not count")] = 3600.0
    call_timeout_s: Annotated[
        Span, Meaning("seconds of one model call, from request to the last byte")
    ] = 600.0
    tool_timeout_s: Annotated[Span, Meaning("seconds of one command or file tool")] = 120.0


class Needs(Struct, frozen=True, gc=False):
    """What 0.2.0 let a task need of its machine: no worker says any more that it has such."""

    gpu: int = 0
    label: str = ""

    def __bool__(self) -> bool:
        return bool(self.gpu or self.label)

    def __str__(self) -> str:
        gpus = "1 GPU" if self.gpu == 1 else f"{self.gpu} GPUs"
        label = f"the label {self.label}"
        return " and ".join([gpus] * bool(self.gpu) + [label] * bool(self.label)) or "nothing"


NOTHING = Needs()


def needs_of_column(text: str) -> Needs:
    """Return what a task needs by its row: ``GPUS LABEL``; empty: nothing."""
    gpu, _, label = text.partition(" ")
    return Needs(int(gpu or 0), label)


class Place(Struct, frozen=True, gc=False):
    """What a task asks of its worker."""

    #: The machine, by its name in ``[pool] machines``; empty: any.
    machine: str = ""
    #: The providers whose keys must be there.
    providers: tuple[str, ...] = ()

    def __str__(self) -> str:
        keys = f"the key of {' and '.join(self.providers)}"
        return f"the machine {self.machine} with {keys}" if self.machine else keys


ANYWHERE = Place()


def elsewhere(node: str, pid: int, fence_s: float) -> str:
    """Return it of a worker on another machine;
    ``fence_s``: how long after its daemon's end it may still change something.
    """
    return f"{node}/{pid}/{fence_s:g}"


def node(label: str) -> str:
    """Return the machine; empty: the daemon's, or none."""
    return label.partition("/")[0] if "/" in label else ""


def fence_s(label: str) -> float:
    """Return how long after its daemon's end a worker may still change something, in seconds."""
    return float(label.rpartition("/")[2]) if "/" in label else 0.0


def words(label: str) -> str:
    """Return which process it was, for people."""
    name, _, rest = label.rpartition("/")[0].partition("/")
    return f"{rest} on {name}" if rest else label


#: ``clone``: a repository's commit, on a branch of the task's own;
#: ``copy``: all that lies in a directory.
WorkspaceKind: TypeAlias = Literal["clone", "copy"]


class Origin(Struct, frozen=True, kw_only=True):
    """The origin that a task asks to work on."""

    kind: WorkspaceKind
    #: The real path of a directory or repository, or a repository's URL.
    source: str
    #: A repository's branch, tag or commit; empty: what it has checked out.
    ref: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return not self.source.startswith("/")


class Base(Struct, frozen=True, kw_only=True):
    """The base that a task's directory begins as."""

    origin: Origin
    #: The folder of batchd's own that has it, as ``workspace.mirrors`` lays it out;
    #: commands see it read-only.
    mirror: str
    #: The commit that a clone begins at; of a copy, the tree.
    commit: str
    #: The branch of the task's own; empty: a copy has none.
    branch: str = ""


class Change(Struct, frozen=True, kw_only=True):
    """The change of one file of a clone or a copy."""

    path: str
    #: Lines; None: it is no text.
    added: int | None
    removed: int | None


class Patch(Struct, frozen=True, kw_only=True):
    """The patch: all that a task has changed in a clone or a copy, as ``git apply`` takes it."""

    changes: tuple[Change, ...] = ()
    #: The patch; empty: nothing has changed, or it could not be made.
    data: bytes = b""
    #: The files whose changes it leaves out, since it would be too large.
    left_out: tuple[str, ...] = ()
    #: Whether it holds a secret: then it is for batchd's user alone.
    withheld: bool = False
    #: What else it lacks, in words: files that could not be read,
    #: repositories within; empty: nothing.
    lacks: str = ""
    #: Why it could not be made; empty: it could.
    problem: str = ""


#: What evaluates a round where there is no ``check``.
Evaluator: TypeAlias = Literal["judge", "none"]
#: Where a check runs: with an empty home and /tmp, or with those of the task's commands.
CheckIn: TypeAlias = Literal["apart", "task"]
#: Whether a check runs before the first call, and whether it must fail then.
CheckFirst: TypeAlias = Literal[False, True, "must_fail"]
#: Whose verdict it is.
VerdictBy: TypeAlias = Literal["check", "output_schema", Evaluator]
#: What a task at work does right now; for people.
Activity: TypeAlias = Literal["starting", "waiting", "model", "tool", "evaluating"]


class TaskStatus(enum.StrEnum):
    """The status of a task. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    COMPLETED = "completed"
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether a task in this status has its result."""
        return self not in {TaskStatus.QUEUED, TaskStatus.RUNNING, TaskStatus.PARKED}


class Reason(enum.StrEnum):
    """The reason why a task did not complete. ``completed`` alone has none."""

    # timeout: a limit ran out first
    MAX_ITERATIONS = "max_iterations"
    MAX_CALLS = "max_calls"
    TOKENS = "tokens"
    BUDGET = "budget"
    WALL_CLOCK = "wall_clock"
    # error
    AUTH = "auth"
    QUOTA = "quota"
    BAD_REQUEST = "bad_request"
    CONTENT_FILTER = "content_filter"
    CONTEXT_OVERFLOW = "context_overflow"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    EVALUATOR = "evaluator"
    LOOP = "loop"
    WORKSPACE = "workspace"
    SANDBOX = "sandbox"
    DISK = "disk"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL = "internal"
    # cancelled
    USER = "user"
    DEPENDENCY = "dependency"


class Ref(Struct, frozen=True, order=True, gc=False):
    """The name of one task: unique over the life of a spool."""

    #: The batch's name, which is its folder in the outbox.
    batch: str
    #: The task's id within the batch.
    task: str

    def __str__(self) -> str:
        return f"{self.batch}/{self.task}"


class TargetCounts(NamedTuple):
    """How many tasks of a batch, or the one, have not ended, and of the others, how many completed
    and how many did not.
    """

    left: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """An environment variable whose value only the task's commands may see: one of these."""

    #: The value itself. The store keeps it apart, until the task ends; afterwards it is empty.
    value: str = field(default="", repr=False)
    #: The name of an environment variable of batchd's own.
    from_env: str = ""
    #: The name of a file in ``[secrets.files]``.
    from_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One job for one agent, as the task file asks for it, defaults filled in."""

    #: Unique in its batch.
    id: str
    #: The user's request: the first message of the conversation.
    first_prompt: str
    #: ``provider/model``.
    model: str
    #: How much the model is to think; empty: as the configuration says.
    effort: AskedEffort = ""
    #: What else its model's calls ask for, over what the model's table says.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: The real path of the directory to work in; empty for a fresh one, ``outbox/BATCH/TASK``.
    dir: str = ""
    #: What the fresh one begins as; None: empty.
    origin: Origin | None = None
    #: Replaces the opening of batchd's own system prompt.
    system_prompt: str = ""
    #: Higher goes first.
    priority: int = 0
    #: Ids in the same batch that must have completed before this one starts.
    after: tuple[str, ...] = ()
    evaluator: Evaluator = "judge"
    #: A shell command; exit 0 accepts the round.
    check: str = ""
    check_in: CheckIn = "apart"
    check_first: CheckFirst = False
    #: How often a check must accept the same files.
    check_runs: int = 1
    #: A JSON Schema that the final answer must satisfy.
    output_schema: Mapping[str, Any] | None = None
    limits: TaskLimits = field(default_factory=TaskLimits)
    #: What its commands may reach: nothing, everything, or these hosts.
    network: Network = False
    #: Environment variables of its commands.
    env: Mapping[str, str] = field(default_factory=dict)
    #: More of them, which are masked wherever they show up.
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    #: The service tier that its model's calls ask for.
    service_tier: Tier = STANDARD
    #: After how many seconds without room in that tier a call goes
    #: on in the standard one; None: never.
    tier_fallback_s: float | None = None
    #: Of a task of 0.2.0: what the machine of its worker had to have.
    needs: Needs = NOTHING
    #: The machine of its worker, by its name in ``[pool] machines``; empty: any.
    machine: str = ""
    tags: tuple[str, ...] = ()
    #: Returned untouched in the result.
    metadata: Mapping[str, Any] = field(default_factory=dict)


class BatchNaming(enum.Enum):
    """The owner of a name in an outbox, for a batch that asks for it."""

    OURS = enum.auto()
    #: Another's that is not stored yet, or has no end: its claim may still come for it.
    PENDING = enum.auto()
    #: Another's, for good.
    TAKEN = enum.auto()


class TurnFacts(Struct, frozen=True, gc=False):
    """The facts that a task's turn hangs on, as lean as a hundred thousand of them must be."""

    ref: Ref
    #: Higher goes first.
    priority: int
    #: Among equals, lower goes first; never the same twice.
    order: int
    #: The absolute path of the directory that it works in.
    directory: str
    #: The tasks that must complete first.
    after: tuple[Ref, ...] = ()
    #: ``PROVIDER/MODEL``, or a provider that has but one.
    model: str = ""
    #: The machine of its worker; empty: any.
    machine: str = ""
    #: Whether it has begun before, so that its directory is its own until it ends.
    begun: bool = False
    #: Whether a worker died of it, so that it must run alone.
    suspect: bool = False
    #: Whether it gave its slot back, so that it counts as parked.
    given_back: bool = False


class Batch(Struct, frozen=True, kw_only=True, gc=False):
    """One dropped file, and the folder in the outbox that answers it."""

    #: Its folder in the outbox; never used twice.
    name: str
    #: The unique mark of the claim (a ULID).
    claim: str
    #: The folder of the outbox it began with, an absolute path.
    outbox: str
    #: The name under which the dropped file lies in its folder: ``request.json``, ``request.md``, …
    request: str
    received_at: float
    #: Caps the whole batch; 0 for none.
    budget_usd: float = 0.0
    #: So many of its tasks work at a time; 0: as many as there are slots.
    parallel: int = 0
    #: The batches that must have completed first.
    after_batches: tuple[str, ...] = ()
    #: The batch that this one runs again, if any.
    retry_of: str | None = None
    #: The order of its first task, and the others follow; 0 until it is stored.
    first_task: int = 0
    #: What marks the file of a ``run``, as in ``control.Submit``; empty: another one of it is new.
    run: str = ""

    @property
    def folder(self) -> str:
        """The absolute path of its folder in the outbox."""
        return f"{self.outbox}/{self.name}"

    def directory(self, task: Task) -> str:
        """Return the absolute path of the directory that a task works in."""
        return task.dir or f"{self.folder}/{task.id}"

    def facts(self, tasks: Iterable[Task]) -> Iterator[TurnFacts]:
        """Yield what the turn of each of its tasks depends on, once the batch is stored; none
        has begun.
        """
        for order, task in enumerate(tasks, self.first_task):
            yield TurnFacts(
                ref=Ref(self.name, task.id),
                priority=task.priority,
                order=order,
                directory=self.directory(task),
                after=tuple(Ref(self.name, earlier) for earlier in task.after),
                model=task.model,
                machine=task.machine,
            )


class Evaluation(Struct, frozen=True, kw_only=True):
    """The verdict on one round."""

    by: VerdictBy
    done: bool
    feedback: str = ""
    #: Whether the check passed before the first call. Left out where it did not.
    already_true: bool | UnsetType = UNSET


class ErrorInfo(Struct, frozen=True, kw_only=True):
    """The ``error`` of a result."""

    type: str
    message: str
    http_status: int | None = None
    retries: int = 0


#: Of a file: size in bytes, mtime and ctime in nanoseconds, inode,
#: mode, number of links; in older journals the first two alone.
FileStamp: TypeAlias = tuple[int, ...]


def _rewritten(before: FileStamp, after: FileStamp) -> bool:
    """Whether a file's content may be another one:
    size and mtime a task can set back, ctime it cannot.

    A change of mode or links moves ctime as well, and is none of the content;
    another file in its place is no such change.
    """
    if before[:2] != after[:2]:
        return True
    if len(before) != len(after) or before[2:3] == after[2:3]:
        return False
    return before[3] != after[3] or before[4:] == after[4:]


@dataclass(frozen=True, slots=True)
class FileChanges:
    """The changes of files in a task's directory: paths, sorted."""

    created: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    @classmethod
    def between(
        cls, before: Mapping[str, FileStamp], after: Mapping[str, FileStamp]
    ) -> FileChanges:
        """Compare two listings."""
        return cls(
            created=tuple(sorted(after.keys() - before.keys())),
            modified=tuple(
                sorted(p for p in after.keys() & before.keys() if _rewritten(before[p], after[p]))
            ),
            deleted=tuple(sorted(before.keys() - after.keys())),
        )


#: ``completed``: all of it. ``cancelled``: an order, or a batch before it,
#: ended what had not completed; no limit and no error did. ``failed``: all else.
Outcome: TypeAlias = Literal["completed", "cancelled", "failed"]
#: How a batch stands: its outcome once it has ended; ``rejected``: its file was refused.
BatchStatus: TypeAlias = Outcome | Literal["rejected", "running", "parked", "queued"]


def outcome(counts: Mapping[TaskStatus, int]) -> Outcome:
    """Return how a batch ended, by how many of its tasks ended in each final status.

    Tasks are cancelled by an order, for a task of the same batch that did not complete, or for a
    batch that this one comes after: where none ended as ``error`` or ``timeout``,
    an order or that batch stands behind each that is cancelled.
    """
    if counts.get(TaskStatus.ERROR) or counts.get(TaskStatus.TIMEOUT):
        return "failed"
    return "cancelled" if counts.get(TaskStatus.CANCELLED) else "completed"


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


_TRIED = "fix the cause, then {resume}; batchd also tries by itself"
_FIXES = {
    Cause.PAUSED: "{resume}",
    # A daemon keeps the variables that it started with; files are read again.
    Cause.AUTH: "write the new key into its file, then {resume}; or, where it is in a variable, start batchd again with it; batchd also tries by itself",
    Cause.UNCERTAIN: "{resume}, once you know that it has not run since",
    Cause.BUDGET: "it goes on by itself at midnight UTC; or batchd tune budget.per_day_usd=…",
    Cause.TIER: "it goes on by itself, once its service tier has room; or {resume}",
    Cause.LIMITED: "it goes on by itself, once the provider lets it; or {resume}",
    Cause.GONE: "to run its tasks with another model, {retry}; or, once it is there, {resume}; batchd also tries by itself",
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
    #: When it is tried again by itself, in seconds since the epoch; None: only people can tell, or
    #: no daemon runs. Never stored.
    again_at: float | None = None

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
