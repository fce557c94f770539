"""Sums and groups: money by model and purpose, what went wrong by reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from batchd import catalog
from batchd.records import Price, TaskStatus, Usage, cache_share
from batchd.report.advice import advice
from batchd.report.content import Elsewhere, FailureGroup, NodeShare, Setback, Share, TaskColumns
from batchd.store.rows import SpendRow

#: Different messages that are shown of one reason; the rest is counted with the last.
_MOST_CAUSES = 8
#: What is cancelled is mostly a consequence of the rest.
_WEIGHTS = {"error": 0, "timeout": 1}
_NUMBER = re.compile(r"\d+")


def shares(rows: Iterable[SpendRow], name: Callable[[SpendRow], str]) -> tuple[Share, ...]:
    """Sum the ledger up by ``name``, dearest first."""
    groups: dict[str, list[SpendRow]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    found = (share(name, group) for name, group in groups.items())
    return tuple(sorted(found, key=lambda s: (-s.usd, -s.input_tokens - s.output_tokens, s.name)))


def share(name: str, rows: Sequence[SpendRow]) -> Share:
    """Sum rows of the ledger up."""
    cached, reported = (
        sum(r.cached_input_tokens for r in rows),
        sum(r.cache_reported_tokens for r in rows),
    )
    saved = [r.cache_saved for r in rows if r.cache_saved is not None]
    return Share(
        name=name,
        calls=sum(r.calls for r in rows),
        input_tokens=sum(r.input_tokens for r in rows),
        cached_input_tokens=cached,
        output_tokens=sum(r.output_tokens for r in rows),
        reasoning_tokens=sum(r.reasoning_tokens for r in rows),
        usd=sum(r.input_usd + r.output_usd for r in rows),
        unpriced_calls=sum(r.unpriced_calls for r in rows),
        estimated_calls=sum(r.estimated_calls for r in rows),
        unsettled_calls=sum(r.unsettled_calls for r in rows),
        unsettled_usd=sum(r.unsettled_usd for r in rows),
        cache_share=cache_share(cached, reported),
        cache_saved=sum(saved) if saved else None,
    )


def elsewhere(
    prices: Iterable[tuple[str, Price | None]], rows: Sequence[SpendRow]
) -> tuple[Elsewhere, ...]:
    """Return what the same tokens cost with other models, cheapest first, unknown prices last."""
    used = [*map(Usage.of, rows)]
    found = (
        Elsewhere(
            name=name,
            usd=sum(price.cost_of_many(u).total for u in used) if price else None,
            gone=_gone(name),
            dearest=price is not None and bool(price.hours),
        )
        for name, price in prices
    )
    return tuple(sorted(found, key=lambda e: (e.usd is None, e.usd or 0.0, e.name)))


def _gone(model: str) -> bool:
    """Return whether a model is off sale today."""
    end = catalog.end(model)
    return end is not None and end.gone(catalog.today())


def nodes(tasks: TaskColumns) -> tuple[NodeShare, ...]:
    """Return what each machine did, the slowest for a task first;
    nothing where all ran on the daemon's.
    """
    groups: dict[str, list[int]] = {}
    for place, node in enumerate(tasks.node):
        if tasks.run_s[place] is not None:
            groups.setdefault(node, []).append(place)
    if not any(groups):
        return ()
    found = [
        NodeShare(
            name=name,
            tasks=len(places),
            run_s=sum(tasks.run_s[place] or 0.0 for place in places),
            tool_s=sum(tasks.tool_s[place] or 0.0 for place in places),
            usd=sum(tasks.usd[place] or 0.0 for place in places),
            unpriced=sum(tasks.usd[place] is None for place in places),
        )
        for name, places in groups.items()
    ]
    return tuple(sorted(found, key=lambda node: (-node.run_s / node.tasks, node.name)))


def setbacks(tasks: TaskColumns) -> tuple[Setback, ...]:
    """Group what did not complete by its reason: errors first,
    then the largest group; within it, by its words.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (status, reason) in enumerate(zip(tasks.status, tasks.reason, strict=True)):
        if reason and TaskStatus(status).final:
            groups.setdefault((status, reason), []).append(place)
    return tuple(
        Setback(
            status=status,
            reason=reason,
            count=len(places),
            advice=advice(reason),
            causes=_causes(tasks, places),
        )
        for (status, reason), places in sorted(groups.items(), key=_weight)
    )


def _weight(group: tuple[tuple[str, str], Sequence[int]]) -> tuple[int, int, str]:
    (status, reason), places = group
    return _WEIGHTS.get(status, 2), -len(places), reason


def _causes(tasks: TaskColumns, places: Sequence[int]) -> tuple[FailureGroup, ...]:
    alike: dict[str, list[int]] = {}
    for place in places:
        alike.setdefault(_NUMBER.sub("#", tasks.message[place]), []).append(place)
    found = sorted(alike.values(), key=lambda group: (-len(group), group[0]))
    shown, rest = found[:_MOST_CAUSES], found[_MOST_CAUSES:]
    causes = [FailureGroup(message=tasks.message[g[0]], tasks=tuple(g)) for g in shown]
    if rest:
        others = tuple(sorted(place for group in rest for place in group))
        causes.append(FailureGroup(message="other messages", tasks=others))
    return tuple(causes)
