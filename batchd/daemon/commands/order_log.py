"""The log's lines about orders: one for each, which says who wanted what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchd.control import Check, ControlRequest, Status, Tune, coding
from batchd.control.requester import Requester
from batchd.daemon.reloading import shown

#: Items of a list that a line shows.
_SHOWN = 20


def changes(request: ControlRequest[Any]) -> bool:
    """Return whether it is an order; else it is only a question, and leaves no line."""
    if isinstance(request, Tune):
        return bool(request.changes or request.reset)
    return not isinstance(request, Status | Check)


def asked(
    kind: type[ControlRequest[Any]], given: Mapping[str, Any], by: Requester
) -> dict[str, Any]:
    """Return who asks, and for what. ``given``: the fields of the request, as JSON has them."""
    fields = {name: value for name, value in given.items() if name != "claim"}
    if wanted := fields.get("changes"):
        fields["changes"] = shown(wanted) if isinstance(wanted, dict) else "…"
    fields = {k: [*v][:_SHOWN] if isinstance(v, list | tuple) else v for k, v in fields.items()}
    who = {"verb": coding.verb(kind), "uid": by.uid, "pid": by.pid, "via": by.via}
    return {k: v for k, v in {**who, **fields}.items() if v or k in {"uid", "pid"}}


def answered(answer: object) -> dict[str, Any]:
    """Return the figures and names of an answer."""
    fields = coding.fields(answer)
    figures: dict[str, Any] = {k: v for k, v in fields.items() if isinstance(v, int)}
    if batches := fields.get("batches"):
        figures["batches"] = [*batches][:_SHOWN]
    if ended := fields.get("ended"):
        figures["ended"] = [each["target"] for each in ended][:_SHOWN]
    return figures
