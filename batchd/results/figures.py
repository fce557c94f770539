"""The figures of a result, and what it says of its workspace."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from batchd.formats import (
    ChangeV1,
    ComparedV1,
    CostV1,
    GroupV1,
    PatchV1,
    SummaryTaskV1,
    TierV1,
    TotalUsageV1,
    UsageV1,
    WorkspaceV1,
)
from batchd.records import ModelSetup, Patch, Purpose, Tally, TaskStatus, Tokens
from batchd.taskstate import TaskState


def workspace(state: TaskState) -> WorkspaceV1 | None:
    """Return what the task worked on; None: a directory in place, or it never began."""
    base = state.terms.base if state.terms else None
    if base is None:
        return None
    origin = base.origin
    return WorkspaceV1(
        kind=origin.kind,
        source=origin.source,
        ref=origin.ref,
        base=base.commit,
        branch=base.branch,
    )


def changes(patch: Patch | None, most: int) -> tuple[ChangeV1, ...] | None:
    """Return what became of its files, ``most`` at most; None: no one knows."""
    if patch is None or patch.problem:
        return None
    return tuple(
        ChangeV1(path=c.path, added=c.added, removed=c.removed) for c in patch.changes[:most]
    )


def patch(task: str, made: Patch | None) -> PatchV1 | None:
    """Return what is known of its patch; None: nothing has changed."""
    if made is None or not (made.changes or made.problem or made.lacks):
        return None
    return PatchV1(
        file=f"{task}.patch" if made.data else None,
        files=len(made.changes),
        bytes=len(made.data),
        sha256=hashlib.sha256(made.data).hexdigest() if made.data else "",
        left_out=made.left_out,
        withheld=made.withheld,
        lacks=made.lacks or None,
        problem=made.problem or None,
    )


#: Digits kept of a sum in dollars: a hundredth of a millionth.
_MONEY_DIGITS = 8
#: And of a share.
_SHARE_DIGITS = 6


def _money(value: float) -> float:
    return round(value, _MONEY_DIGITS)


def _usage(tally: Tally) -> dict[str, Any]:
    share = tally.cache_share
    return {
        "calls": tally.calls,
        "input_tokens": tally.input_tokens,
        "cached_input_tokens": tally.cached_input_tokens,
        "output_tokens": tally.output_tokens,
        "reasoning_tokens": tally.reasoning_tokens,
        "total_tokens": tally.total_tokens,
        "average_tokens_per_call": round(tally.total_tokens / tally.calls) if tally.calls else 0,
        "estimated": tally.estimated,
        "cache_write_tokens": tally.cache_write_tokens,
        "cache_write_long_tokens": tally.cache_write_long_tokens,
        "cache_reported_tokens": tally.reported_tokens,
        "cache_share": None if share is None else round(share, _SHARE_DIGITS),
    }


def tallied(usage: UsageV1) -> Tally:
    """Return the tokens that a result has."""
    known = {name: getattr(usage, name) for name in Tokens.__struct_fields__}
    return Tally(**known, estimated_calls=int(usage.estimated))


def used(by_purpose: Mapping[Purpose, Tally], unsettled_calls: int) -> TotalUsageV1:
    """Return the sum of tokens, and each purpose's part of it."""
    return TotalUsageV1(
        **_usage(sum(by_purpose.values(), Tally())),
        unsettled_calls=unsettled_calls,
        by_purpose={
            purpose: UsageV1(**_usage(by_purpose.get(purpose, Tally()))) for purpose in Purpose
        },
    )


def paid(state: TaskState) -> CostV1:
    """Return what a task has cost, and would have with other models."""
    tally, terms = state.tally, state.terms
    price = terms.model.price if terms else None
    known = price is not None or not (state.spend or tally.unsettled_calls)
    paid = not tally.unpriced_calls and (price is not None or not state.spend)
    return CostV1(
        currency="USD",
        input=_money(tally.input_usd) if paid else None,
        output=_money(tally.output_usd) if paid else None,
        total=_money(tally.known_usd) if paid else None,
        unsettled=_money(tally.unsettled_usd) if known else None,
        price_source=price.source if price else None,
        compare=tuple(_compared(setup, state) for setup in (terms.compare if terms else ())),
        cache_saved=None if state.cache_saved_usd is None else _money(state.cache_saved_usd),
        tiers={name: _tier(served) for name, served in sorted(state.by_tier.items())},
    )


def _tier(served: Tally) -> TierV1:
    return TierV1(
        calls=served.calls,
        input_tokens=served.input_tokens,
        output_tokens=served.output_tokens,
        cost=None if served.cost_usd is None else _money(served.cost_usd),
    )


def _compared(setup: ModelSetup, state: TaskState) -> ComparedV1:
    """Return what another model would have taken for the same tokens,
    the calls of each purpose as long as their average; where its price has hours, each call by its
    own length and moment.
    """
    price, total = setup.price, state.compared.get(setup.name)
    if total is None and price is not None:
        total = sum(price.cost_of_many(each).total for each in state.spend.values())
    return ComparedV1(model=setup.name, total=None if total is None else _money(total))


def summed(costs: list[CostV1]) -> CostV1:
    """Return the sum of costs: null as soon as one of them is."""

    def total(values: list[float | None]) -> float | None:
        return None if None in values else _money(sum(v for v in values if v is not None))

    models = list(dict.fromkeys(c.model for cost in costs for c in cost.compare))
    saved = [cost.cache_saved for cost in costs if cost.cache_saved is not None]
    tiers = sorted({name for cost in costs for name in cost.tiers})
    sources = {cost.price_source for cost in costs if cost.price_source}
    return CostV1(
        currency="USD",
        input=total([c.input for c in costs]),
        output=total([c.output for c in costs]),
        total=total([c.total for c in costs]),
        unsettled=total([c.unsettled for c in costs]),
        price_source=",".join(sorted(sources)) or None,
        compare=tuple(
            ComparedV1(
                model=model,
                total=total([c.total for cost in costs for c in cost.compare if c.model == model]),
            )
            for model in models
        ),
        cache_saved=_money(sum(saved)) if saved else None,
        tiers={name: _tiers([c.tiers[name] for c in costs if name in c.tiers]) for name in tiers},
    )


def _tiers(parts: list[TierV1]) -> TierV1:
    """Return the sum of what a tier served: its cost is null as soon as that of one of them is."""
    known = [part.cost for part in parts if part.cost is not None]
    return TierV1(
        calls=sum(part.calls for part in parts),
        input_tokens=sum(part.input_tokens for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        cost=_money(sum(known)) if len(known) == len(parts) else None,
    )


def groups(ended: Iterable[tuple[str, SummaryTaskV1]]) -> tuple[GroupV1, ...]:
    """Return tasks side by side, by the name that stands with each, in the order of the names."""
    found: dict[str, list[SummaryTaskV1]] = {}
    for name, task in ended:
        found.setdefault(name, []).append(task)
    return tuple(_group(name, tasks) for name, tasks in found.items())


def _group(name: str, tasks: list[SummaryTaskV1]) -> GroupV1:
    accepted = sum(task.status == TaskStatus.COMPLETED for task in tasks)
    rounds = [task.iterations for task in tasks if task.iterations]
    at_work = [task.run_s for task in tasks if task.run_s]
    known = [task.cost for task in tasks if task.cost is not None]
    cost = _money(sum(known)) if len(known) == len(tasks) else None
    return GroupV1(
        name=name,
        tasks=len(tasks),
        accepted=accepted,
        success_rate=round(accepted / len(tasks), 6),
        iterations_mean=round(statistics.mean(rounds), 3) if rounds else None,
        run_s_median=round(statistics.median(at_work), 3) if at_work else None,
        cost=cost,
        cost_per_accepted=_money(cost / accepted) if cost is not None and accepted else None,
    )
