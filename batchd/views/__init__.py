"""What an event is, in words for people and in fields for programs: the one place that says so.

Each kind of event has one ``View``, which has all its faces: the log's line, the line of ``logs``,
passages of the conversation that ``logs``, ``top``, the report and the web page show, the span. A
new event needs a class in ``kinds``, and nothing else here. Pure: who shows a text neutralises it.
"""

from __future__ import annotations

from collections.abc import Iterator as Iterator, Mapping as Mapping
from typing import Any as Any

from batchd.events import Event as Event
from batchd.views.kinds import VIEWS as VIEWS
from batchd.views.view import (
    Kind as Kind,
    Line as Line,
    Mark as Mark,
    Passage as Passage,
    View as View,
)

#: One of each kind of event.
ALL: tuple[View[Any], ...] = tuple(VIEWS.values())
_BY_NAME: Mapping[str, View[Any]] = {kind.__name__: view for kind, view in VIEWS.items()}
#: Of a kind that a newer version has stored.
_UNKNOWN: View[Any] = View()


def of(event: Event) -> View[Any]:
    """Return the view of an event."""
    return VIEWS[type(event)]


def last(kind: str) -> View[Any]:
    """Return the view of a task's last event, by the kind under which the store has it;
    of none, or an unknown one, an empty view.
    """
    return _BY_NAME.get(kind, _UNKNOWN)


def passages(event: Event, first_prompt: str) -> Iterator[Passage]:
    """Yield what an event adds to its task's conversation;
    nothing for those that later ones include.
    """
    return VIEWS[type(event)].passages(event, first_prompt)
