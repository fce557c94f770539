"""The log's lines about orders: one for each, which says who wanted what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from batchd.control.server import Handler, giver
from batchd.daemon.reloading import told
from batchd.errors import BatchdError
from batchd.log import Action

#: Items of a list that a line shows.
_SHOWN = 20


def logged(table: Mapping[str, Handler], log: Any) -> Mapping[str, Handler]:
    """Return the verbs, those that change something with their line."""
    return {v: h if v == "status" else _logged(v, h, log) for v, h in table.items()}


def _logged(verb: str, handler: Handler, log: Any) -> Handler:
    @wraps(handler)
    async def order(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if verb == "tune" and not (arguments.get("changes") or arguments.get("reset")):
            return await handler(arguments)  # only a question
        fields = {"verb": verb, **_asked(arguments)}
        try:
            # It may have waited a while to be read: for a daemon that was stopped, or had much to do.
            giver(arguments).insist()
            answer = await handler(arguments)
        except BatchdError as error:
            log.warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})
            raise
        log.info(Action.COMMAND_DONE, **fields | _answered(answer))
        return answer

    return order


def _asked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return who asks, and for what."""
    fields = dict(arguments)
    by = giver(fields)
    fields.pop("by", None)
    fields.pop("claim", None)
    fields.pop("event", None)
    if isinstance(changes := fields.get("changes"), dict):
        fields["changes"] = told(changes)
    fields = {str(k): v[:_SHOWN] if isinstance(v, list) else v for k, v in fields.items()}
    return {"uid": by.uid, "pid": by.pid, **{k: v for k, v in fields.items() if v}}


def _answered(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures and names of an answer."""
    shown: dict[str, Any] = {k: v for k, v in answer.items() if isinstance(v, int)}
    if batches := answer.get("batches"):
        shown["batches"] = batches[:_SHOWN]
    return shown
