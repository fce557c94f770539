"""What the page is given: the one contract between Python and ``assets/*.js``, as JSON.

Money is in US dollars, durations are seconds, moments are seconds since the epoch. None: not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContent:
    """One batch."""

    name: str
    #: From the page to its folder: empty, or ending in a slash.
    link: str
    received_at: float
    #: None: it has not ended.
    finished_at: float | None
    tasks: int
    #: As ``batchd status`` has it.
    status: str
    retry_of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Calls, tokens and money of a model, or of a purpose."""

    name: str
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    #: What is known of it: calls without a price are left out.
    usd: float
    #: Calls without a known price.
    unpriced_calls: int
    #: Calls whose tokens were counted here.
    estimated_calls: int
    unsettled_calls: int
    unsettled_usd: float
    #: The part of the input that came from the provider's cache,
    #: and what it saved; None: that is not known.
    cache_share: float | None = None
    cache_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one machine did: the tasks whose last attempt it had."""

    #: Empty: the daemon's own.
    name: str
    tasks: int
    #: At work, and of that running commands.
    run_s: float
    tool_s: float
    #: What is known of it.
    usd: float
    #: Tasks of which more is not known.
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What the same tokens would have cost with another model."""

    name: str
    usd: float | None
    #: Whether its provider has shut it down: the price is its last one.
    gone: bool = False
    #: Whether the price depends on the moment: it is its dearest one.
    dearest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Tasks that report the same thing in the same words, numbers apart."""

    message: str
    #: Places in the columns of ``TaskColumns``.
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Tasks that did not complete, for one reason."""

    status: str
    reason: str
    count: int
    #: What it means and how to go on, for people.
    advice: str
    causes: tuple[FailureGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """A task that changed what runs code when somebody uses its directory."""

    #: Its place in the columns of ``TaskColumns``.
    task: int
    directory: str
    #: Path, change, by and show of each, as the result has them; None: no one looked.
    files: tuple[Mapping[str, Any], ...] | None
    #: Files that are left out.
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A task in its slot, on the timeline."""

    #: Its place in the columns of ``TaskColumns``.
    task: int
    lane: int
    start: float
    end: float


@dataclass(slots=True, kw_only=True)
class TaskColumns:
    """Columns: one value a task each, all in the same order."""

    id: list[str] = field(default_factory=list)
    #: Which of ``Content.folders`` it belongs to.
    folder: list[int] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    message: list[str] = field(default_factory=list)
    #: How its prompt begins.
    prompt: list[str] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    estimated: list[int] = field(default_factory=list)
    usd: list[float | None] = field(default_factory=list)
    unsettled_usd: list[float] = field(default_factory=list)
    started_at: list[float | None] = field(default_factory=list)
    run_s: list[float | None] = field(default_factory=list)
    model_s: list[float | None] = field(default_factory=list)
    tool_s: list[float | None] = field(default_factory=list)
    #: The machine that its last attempt ran on; empty: the daemon's, or none.
    node: list[str] = field(default_factory=list)
    parked_s: list[float | None] = field(default_factory=list)
    #: The file beside the page that holds every step; empty: there is none.
    transcript: list[str] = field(default_factory=list)
    #: The link to its own directory, ending in a slash;
    #: empty: it has none, or it is not beside the page.
    own: list[str] = field(default_factory=list)
    #: Where its details stand among the blocks: first character and how many; 0, 0: not embedded.
    block: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that the page shows, details of tasks apart."""

    version: str
    title: str
    made_at: float
    folders: tuple[BatchContent, ...]
    counts: Mapping[str, int]
    #: From the first drop to the last end.
    wall_s: float
    #: At work, over all tasks.
    run_s: float
    total: Share
    models: tuple[Share, ...]
    purposes: tuple[Share, ...]
    #: A task with several tags is counted under each.
    tags: tuple[Share, ...]
    #: Empty where all ran on the daemon's machine.
    nodes: tuple[NodeShare, ...]
    elsewhere: tuple[Elsewhere, ...]
    setbacks: tuple[Setback, ...]
    cautions: tuple[Caution, ...]
    #: Orders that lead on, such as ``batchd retry NAME --failed``.
    orders: tuple[str, ...]
    lanes: int
    bars: tuple[Bar, ...]
    #: When tasks were without a slot; their ``lane`` says nothing.
    parked: tuple[Bar, ...]
    #: What is missing, and why.
    notes: tuple[str, ...]
    tasks: TaskColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """One task in full: a block of its own, deflated, read when it is opened."""

    prompt: str
    answer: str
    #: Both as ``observe.markdown`` reads them; None: plain words.
    prompt_tree: list[Any] | None
    answer_tree: list[Any] | None
    directory: str
    evaluation: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    files: Mapping[str, Any] | None
    #: As ``observe.changes`` gives it; None: there is none.
    patch: Mapping[str, Any] | None
    usage: Mapping[str, Any] | None
    timing: Mapping[str, Any] | None
    tags: tuple[str, ...]
    attempts: int
    #: Who worked on it last.
    worker: str
    #: What was cut off prompt and answer, in characters.
    left_out: int
    #: None: the transcript is not embedded.
    passages: tuple[Mapping[str, Any], ...] | None
