"""Tasks and batches: what is asked for, and how it ends."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from batchd.records.hosts import Network
from batchd.records.limits import TaskLimits
from batchd.records.models import AskedEffort
from batchd.records.money import STANDARD, Tier
from batchd.records.needs import NOTHING, Needs
from batchd.records.workspaces import Origin

#: What evaluates a round where there is no ``check``.
Evaluator: TypeAlias = Literal["judge", "none"]
#: Where a check runs: with an empty home and /tmp, or with those of the task's commands.
CheckIn: TypeAlias = Literal["apart", "task"]
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
    #: What the machine of its worker must have.
    needs: Needs = NOTHING
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
    #: What the machine of its worker must have.
    needs: Needs = NOTHING
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
                needs=task.needs,
            )


class Evaluation(Struct, frozen=True, kw_only=True):
    """The verdict on one round."""

    by: VerdictBy
    done: bool
    feedback: str = ""


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
