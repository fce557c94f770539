"""Makes messages of events: one event as it is, many in one, with a subject and a text."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from batchd import __version__, decoders
from batchd.log import escape
from batchd.masking import Masker
from batchd.notify.format import EventV1, NotificationV1
from batchd.results import timestamp
from batchd.spool.ulid import time_of

#: The most important first: they stand at the top, and where there are too many, they stay.
_RANKS = (
    *("test", "provider_parked", "budget_reached", "batch_rejected", "batch_failed"),
    *("daemon_started", "provider_resumed", "batch_completed"),
)
#: Events that a message carries; more are counted.
MOST_EVENTS = 50
#: Events that are shown in full; of more, the headlines.
_IN_FULL = 10
_LONGEST_SUBJECT = 200
#: What programs go by is of words of ours alone:
#: a password that happens to be one of them is not to be found there.
_OURS = frozenset({"id", "event", "at", "since", "scope", "cause", "status", "reason"})
#: How several events of a name are counted.
_COUNTED = {
    "batch_completed": "completed",
    "batch_failed": "with failures",
    "batch_rejected": "rejected",
    "budget_reached": "budgets reached",
    "provider_parked": "providers parked",
    "provider_resumed": "providers back",
    "daemon_started": "starts of the daemon",
}


def clean(event: EventV1, masker: Masker) -> EventV1:
    """Return an event without secrets and control characters in any of its texts;
    its message alone has lines.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return escape(masker.text(value))
        if isinstance(value, dict):
            return {k: below if k in _OURS else cleaned(below) for k, below in value.items()}
        return [*map(cleaned, value)] if isinstance(value, list | tuple) else value

    # One that holds lone surrogates is no JSON yet: hence by way of Python's own values.
    made = decoders.convert(cleaned(msgspec.to_builtins(event)), EventV1)
    return replace(made, message="\n".join(cleaned(event.message.split("\n"))))


def compose(events: Sequence[EventV1], own: str) -> NotificationV1:
    """Return the message that reports these events, with its id; of too many the most important."""
    ranked = sorted(events, key=lambda event: _rank(event.event))
    more = Counter(event.event for event in ranked[MOST_EVENTS:])
    ranked = ranked[:MOST_EVENTS]
    host = escape(socket.gethostname())
    return NotificationV1(
        id=own,
        at=timestamp(time_of(own)),
        host=host,
        subject=f"[batchd {host}] {_subject(ranked, more)}"[:_LONGEST_SUBJECT],
        text="\n".join(_text(ranked, more)).strip() + f"\n\n-- \nbatchd {__version__} on {host}\n",
        events=tuple(sorted(ranked, key=lambda event: event.id)),
        left_out=dict(more),
    )


def _rank(name: str) -> int:
    """Return how important an event is, 0 the most; last, one that an older version stored."""
    return _RANKS.index(name) if name in _RANKS else len(_RANKS)


def _subject(ranked: Sequence[EventV1], more: Counter[str]) -> str:
    counts = Counter(event.event for event in ranked) + more
    first, total = ranked[0], counts.total()
    if total == 1:
        return first.headline
    if first.event.startswith("batch_") and all(name.startswith("batch_") for name in counts):
        return f"{total:,} batches ended: {_kinds(counts)}"
    return f"{first.headline}, and {total - 1:,} more"


def _kinds(counts: Counter[str]) -> str:
    named = sorted(counts.items(), key=lambda item: _rank(item[0]))
    return ", ".join(f"{count:,} {_COUNTED.get(name, name)}" for name, count in named)


def _text(ranked: Sequence[EventV1], more: Counter[str]) -> Iterator[str]:
    for index, event in enumerate(ranked):
        when = event.at.replace("T", " ").partition(".")[0]
        if index >= _IN_FULL:
            yield f"{when} UTC  {event.headline}"
            continue
        yield f"{when} UTC  {event.headline}"
        yield from (f"    {line}" for line in event.message.splitlines())
        if event.how_to_go_on:
            yield f"    To go on: {event.how_to_go_on}"
        yield ""
    if more:
        yield f"… and {more.total():,} more: {_kinds(more)}"
