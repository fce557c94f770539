"""Similar tasks on record, and what those to come would come to if they went the same way."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from batchd.records import ModelSetup, TaskLimits, Usage
from batchd.store.past import PastTask

#: Fewer similar tasks than this, and wider kinds are looked at.
MIN_SIMILAR_TASKS = 5
#: That many of them are looked at closely, from all over the record.
MAX_SIMILAR_TASKS = 200
#: Where a prompt gives nothing better: English.
_TOKENS_PER_CHAR = 0.25


@dataclass(frozen=True, slots=True)
class Likeness:
    """What similar tasks have in common."""

    #: For people.
    name: str
    #: By how much the mean of a new batch deviates at least,
    #: as a share of it. Judged, not measured.
    doubt: float


EXACT = Likeness("same model, tags and evaluation", 0.1)
TAGS = Likeness("same model and tags", 0.1)
A_TAG = Likeness("same model, a tag in common", 0.15)
EVALUATION = Likeness("same model and evaluation", 0.25)
MODEL = Likeness("same model", 0.25)
PROVIDER = Likeness("other models of the provider, at this one's prices", 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """Tasks to come that nothing here distinguishes but their prompts."""

    setup: ModelSetup
    #: What judges them, where that is another model.
    judge: ModelSetup
    #: As the store labels them.
    tags: str
    evaluation: str
    limits: TaskLimits

    @property
    def judged(self) -> bool:
        """Whether a judge is asked."""
        return "judge" in self.evaluation.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The first requests of some tasks of a kind, on average."""

    #: Of the whole request.
    tokens: float
    #: Of ``first_prompt``.
    prompt_tokens: float
    prompt_chars: float


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The outcome that a task would have."""

    calls: float
    tokens: float
    #: None: no price is known.
    cost: float | None
    seconds: float


class SimilarTasks:
    """The tasks of one model on record, newest first, and of its provider's other models."""

    def __init__(self, own: Sequence[PastTask], others: Callable[[], Sequence[PastTask]]) -> None:
        self._own = own
        self._others = others
        self._by: dict[tuple[object, ...], list[PastTask]] = defaultdict(list)
        for past in own:
            self._by[EXACT, past.tags, past.evaluation].append(past)
            self._by[TAGS, past.tags].append(past)
            self._by[EVALUATION, past.evaluation].append(past)
            for tag in _split(past.tags):
                self._by[A_TAG, tag].append(past)

    def like(
        self, kind: TaskKind, most: int = MAX_SIMILAR_TASKS
    ) -> tuple[Likeness, Sequence[PastTask]] | None:
        """Return the tasks on record that are most like a kind, and in what;
        None: there are none at all.
        """
        for likeness, found in self._ladder(kind):
            if len(found) >= MIN_SIMILAR_TASKS:
                return likeness, _thinned(found, most)
        if self._own:
            return MODEL, _thinned(self._own, most)
        others = self._others()
        return (PROVIDER, _thinned(others, most)) if others else None

    def _ladder(self, kind: TaskKind) -> Iterator[tuple[Likeness, Sequence[PastTask]]]:
        yield EXACT, self._by.get((EXACT, kind.tags, kind.evaluation), ())
        yield TAGS, self._by.get((TAGS, kind.tags), ())
        theirs = (
            _thinned(self._by.get((A_TAG, tag), ()), MAX_SIMILAR_TASKS) for tag in _split(kind.tags)
        )
        shared = {id(p): p for p in itertools.chain(*theirs)}
        yield A_TAG, tuple(shared.values())
        yield EVALUATION, self._by.get((EVALUATION, kind.evaluation), ())
        yield MODEL, self._own


def _thinned(found: Sequence[PastTask], most: int) -> Sequence[PastTask]:
    """Return some of many, evenly:
    the newest alone may all be of one batch, which says nothing of the next.
    """
    return found[:: -(-len(found) // most)] if found else found


def outcome(past: PastTask, kind: TaskKind, prompts: Prompts) -> TaskOutcome:
    """Return what a task of a kind would come to,
    were it to take as many calls, and add as much to its prompt.

    At today's prices. Each call carries the prompt, so a longer one costs in each; what the limits
    would have ended is cut in proportion.
    """
    used = _with_prompt(past, prompts)
    cost = _cost(past, used, kind)
    limits = kind.limits
    limited = (
        (limits.max_calls, used.calls),
        (limits.max_tokens, used.total_tokens),
        (limits.max_cost_usd, cost),
    )
    share = min([1.0, *(most / value for most, value in limited if most and value)])
    return TaskOutcome(
        calls=used.calls * share,
        tokens=used.total_tokens * share,
        cost=None if cost is None else cost * share,
        seconds=past.seconds * share,
    )


def _with_prompt(past: PastTask, prompts: Prompts) -> Usage:
    """Return the tokens of a task on record, had it had these prompts."""
    used = past.usage
    if past.prompt_chars is None or not used.input_tokens:
        return used
    rate = prompts.prompt_tokens / prompts.prompt_chars if prompts.prompt_chars else 0.0
    longer = (rate or _TOKENS_PER_CHAR) * (prompts.prompt_chars - past.prompt_chars)
    wanted = max(prompts.tokens, used.input_tokens + used.calls * longer)
    # As much of it comes from the cache as did.
    scale = wanted / used.input_tokens
    return replace(
        used,
        input_tokens=round(wanted),
        cached_input_tokens=round(used.cached_input_tokens * scale),
        cache_write_tokens=round(used.cache_write_tokens * scale),
        cache_write_long_tokens=round(used.cache_write_long_tokens * scale),
    )


def _cost(past: PastTask, used: Usage, kind: TaskKind) -> float | None:
    price = kind.setup.price
    if price is None or (kind.judged and kind.judge.price is None):
        return None
    today = price.cost_of_many(used).total
    foreign = kind.judged and kind.judge.name != kind.setup.name
    if not foreign or past.cost_usd is None or past.model != kind.setup.name:
        return today
    # Which of its tokens were the judge's is not on record, but what they cost together is.
    before = price.cost_of_many(past.usage).total
    return past.cost_usd * today / before if before else past.cost_usd


def _split(tags: str) -> Sequence[str]:
    found: Sequence[str] = msgspec.json.decode(tags) if tags else ()
    return found
