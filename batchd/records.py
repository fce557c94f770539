"""The values that every room passes around: frozen, without I/O.

Money is in US dollars, times are seconds since the epoch (UTC), durations are
seconds, sizes are bytes, and models are named ``provider/model``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Status(enum.StrEnum):
    """Where a task stands. The last four are final."""

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
        return self not in {Status.QUEUED, Status.RUNNING, Status.PARKED}


class Reason(enum.StrEnum):
    """Why a task did not complete. ``completed`` alone has no reason."""

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
    SANDBOX = "sandbox"
    DISK = "disk"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL = "internal"
    # cancelled
    USER = "user"
    DEPENDENCY = "dependency"


class Purpose(enum.StrEnum):
    """What a model call was made for."""

    AGENT = "agent"
    JUDGE = "judge"
    COMPACTION = "compaction"


class FailureKind(enum.StrEnum):
    """What went wrong with a model call, as far as one call can tell."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_ANSWER = "bad_answer"
    AUTH = "auth"
    QUOTA = "quota"
    FORBIDDEN = "forbidden"
    BAD_REQUEST = "bad_request"
    CONTENT_FILTER = "content_filter"
    CONTEXT_OVERFLOW = "context_overflow"

    @property
    def unsettled(self) -> bool:
        """Whether the provider may have done, and billed, the work all the same."""
        return self in {FailureKind.TIMEOUT, FailureKind.CONNECTION, FailureKind.BAD_ANSWER}


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The name of one task: unique over the life of a spool."""

    #: The batch's name, which is its folder in the outbox.
    batch: str
    #: The task's id within the batch.
    task: str

    def __str__(self) -> str:
        return f"{self.batch}/{self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a task may use up. 0 means no limit of its own."""

    #: Rounds of work and evaluation.
    max_iterations: int = 10
    #: Model calls, evaluations and compactions included.
    max_calls: int = 100
    #: Tokens over all calls, input and output together.
    max_tokens: int = 0
    #: Output tokens of one call.
    max_output_tokens: int = 8192
    #: Money over all calls.
    max_cost_usd: float = 0.0
    #: Time at work; parked time does not count.
    timeout_s: float = 3600.0
    #: One model call, from request to the last byte.
    call_timeout_s: float = 600.0
    #: One command or file tool.
    tool_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One job for one agent, as the task file asks for it, defaults filled in."""

    #: Unique in its batch.
    id: str
    #: The user's request: the first message of the conversation.
    first_prompt: str
    #: ``provider/model``.
    model: str
    #: The real path of the directory to work in; empty for a fresh one, ``outbox/BATCH/TASK``.
    dir: str = ""
    #: Replaces the opening of batchd's own system prompt.
    system_prompt: str = ""
    #: Higher goes first.
    priority: int = 0
    #: Ids in the same batch that must have completed before this one starts.
    after: tuple[str, ...] = ()
    #: ``judge`` or ``none``: what evaluates a round where there is no ``check``.
    evaluator: str = "judge"
    #: A shell command; exit 0 accepts the round.
    check: str = ""
    #: A JSON Schema that the final answer must satisfy.
    output_schema: Mapping[str, Any] | None = None
    limits: Limits = field(default_factory=Limits)
    #: Whether its commands may use the network.
    network: bool = False
    #: Environment variables of its commands.
    env: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    #: Returned untouched in the result.
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
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
    #: The batch that this one runs again, if any.
    retry_of: str | None = None

    @property
    def folder(self) -> str:
        """The absolute path of its folder in the outbox."""
        return f"{self.outbox}/{self.name}"

    def directory(self, task: Task) -> str:
        """Return the absolute path of the directory that a task works in."""
        return task.dir or f"{self.folder}/{task.id}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it."""

    id: str
    name: str
    #: JSON text; may be malformed, or cut off.
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in the terms of chat completions."""

    #: ``system``, ``user``, ``assistant`` or ``tool``.
    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    #: For the role ``tool``: the call that this answers; None under the text protocol, which sends it as ``user``.
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call or of many, as the provider counts them."""

    calls: int = 0
    #: All input, the cached part included.
    input_tokens: int = 0
    #: The part of the input that was read from the provider's prompt cache.
    cached_input_tokens: int = 0
    #: The part that was written to it, where the provider says so: some bill that apart.
    cache_write_tokens: int = 0
    #: All output, the reasoning included.
    output_tokens: int = 0
    reasoning_tokens: int = 0
    #: Whether any of it was counted here because the provider sent no usage.
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Money, in US dollars."""

    input: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """Input and output together."""
        return self.input + self.output

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.input + other.input, self.output + other.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a million tokens cost in calls whose input is longer than ``above`` tokens."""

    input: float
    #: Input read from the provider's prompt cache.
    cached_input: float
    output: float
    above: int = 0
    #: Input written to that cache; None: like any input.
    cache_write: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs: one rate, or several where long inputs cost more."""

    #: By ascending ``above``; the first is 0.
    rates: tuple[Rate, ...]
    #: Where the numbers come from: ``genai-prices`` or ``config``.
    source: str

    def cost(self, usage: Usage) -> Cost:
        """Return the price of one call (of many only where there is one rate)."""
        rate = [r for r in self.rates if r.above < max(usage.input_tokens, 1)][-1]
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        write = rate.input if rate.cache_write is None else rate.cache_write
        spent = (
            fresh * rate.input
            + usage.cached_input_tokens * rate.cached_input
            + usage.cache_write_tokens * write
        )
        return Cost(spent / 1e6, usage.output_tokens * rate.output / 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Tokens used, and what they cost."""

    usage: Usage = field(default_factory=Usage)
    #: None: no price is known.
    cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered to one call."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    #: ``stop``, ``tool_calls``, ``length`` or ``content_filter``.
    finish_reason: str = "stop"
    #: The model's visible thinking, where the provider sends it.
    reasoning: str = ""
    usage: Usage = field(default_factory=Usage)
    #: The model that the provider says it used.
    model: str = ""
    #: From the request to the last byte.
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A model call that brought no answer."""

    kind: FailureKind
    #: One line for people, without secrets.
    message: str
    http_status: int | None = None
    #: What the provider asked us to wait, if it did.
    retry_after_s: float | None = None
    #: Its rate limit headers, lower-case names.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Whether the request may have reached the provider.
    sent: bool = True

    @property
    def unsettled(self) -> bool:
        """Whether the provider may have done, and billed, the work all the same."""
        return self.sent and self.kind.unsettled


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """The ``error`` of a result."""

    type: str
    message: str
    http_status: int | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The verdict on one round."""

    #: ``check``, ``output_schema``, ``judge`` or ``none``.
    by: str
    done: bool
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class FileChanges:
    """What became of the files in a task's directory: paths, sorted."""

    created: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    @classmethod
    def between(
        cls, before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
    ) -> FileChanges:
        """Compare two listings of path to (size, mtime)."""
        return cls(
            created=tuple(sorted(after.keys() - before.keys())),
            modified=tuple(
                sorted(p for p in after.keys() & before.keys() if after[p] != before[p])
            ),
            deleted=tuple(sorted(before.keys() - after.keys())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSetup:
    """How a model is called; frozen into the journal when a task starts."""

    #: ``provider/model``.
    name: str
    #: None: no price is known.
    price: Price | None = None
    #: Tokens that fit into its window; 0 if unknown.
    context_window: int = 0
    #: ``native``, ``text`` or ``auto``.
    tools: str = "auto"
    #: The request field that carries the limit on output tokens.
    output_limit_field: str = "max_completion_tokens"
    #: How a judge is bound to its JSON: ``json_schema``, ``json_object`` or ``none``.
    json_mode: str = "json_schema"
    #: Sent along in every request body, over our own fields.
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        """The provider's name in the configuration."""
        return self.name.partition("/")[0]

    @property
    def model(self) -> str:
        """The model's name at the provider."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a provider is reached. Never stored, never logged."""

    base_url: str
    api_key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_concurrent: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What commands may do, from ``[sandbox]``."""

    #: ``bwrap`` or ``none``.
    backend: str = "bwrap"
    #: Who runs commands in fresh directories when batchd is root.
    user: str = "nobody"
    #: Whether tasks may ask for the network.
    network: bool = False
    #: Processes of one user at a time.
    max_processes: int = 256
    #: Data segment of one process.
    max_memory_bytes: int = 2 << 30
    #: Size of one file.
    max_file_bytes: int = 1 << 30
    #: The sandbox's /tmp.
    tmp_bytes: int = 256 << 20
    #: What is kept of a command's output; the middle is cut out.
    max_output_bytes: int = 16 << 10
