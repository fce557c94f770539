"""The log's lines about tasks: of each committed event what its view has,
and what an attempt remembers between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchd import views
from batchd.events import CallFailed, CallStarted, Event, RoundEvaluated
from batchd.log import Action, detailed, get_logger
from batchd.records import Purpose, Ref
from batchd.views.view import logged
from batchd.wire import Ask


def write(ref: Ref, event: Event) -> None:
    """Write what a committed event of a task says that no worker has."""
    # Without a logger of the task's own: an order may end 100,000 of them.
    for level, action, fields in views.of(event).log(event):
        getattr(get_logger(), level)(action, batch=ref.batch, task=ref.task, worker=0, **fields)


class TaskLog:
    """The log of one attempt at a task."""

    def __init__(self, ref: Ref, worker: Mapping[str, Any], model: str) -> None:
        """``worker``: the fields that say which one works on it."""
        self._log = get_logger(batch=ref.batch, task=ref.task, **worker)
        self._model = model
        #: Whether a round's beginning is still to be logged.
        self._between_rounds = True
        #: When the last call was granted.
        self._called_at = 0.0

    def step(self, step: str, detail: str) -> None:
        """Write what the task does next, where details are wanted."""
        if detailed():
            self._log.debug(Action.STEP_STARTED, step=step, detail=logged(detail))

    def asks(self, ask: Ask, tier: str, *, again: bool) -> None:
        """Write that a call wants its permit, where details are wanted;
        ``again``: the try before failed.
        """
        if detailed():
            fields: dict[str, Any] = {
                "purpose": ask.purpose.value,
                "gen_ai.request.model": ask.model,
                "input_tokens": ask.input_tokens,
                "max_output_tokens": ask.max_output_tokens,
                "service_tier": tier,
                "again": again,
            }
            self._log.debug(Action.PERMIT_ASKED, **fields)

    def event(self, event: Event) -> None:
        """Write what a committed event says, if there is anything to say."""
        if isinstance(event, CallStarted):
            self._begins(event)
            if not detailed():
                return
        if isinstance(event, RoundEvaluated) and event.final:
            self._between_rounds = True
        for level, action, fields in views.of(event).log(event):
            if action in {Action.MODEL_CALLED, Action.MODEL_FAILED}:
                fields["gen_ai.request.model"] = self._model
            if isinstance(event, CallFailed):
                took = event.at - (self._called_at or event.at)
                fields["seconds"] = round(max(0.0, took), 3)
            getattr(self._log, level)(action, **fields)

    def _begins(self, event: CallStarted) -> None:
        """Write that a round begins, if one does."""
        if self._between_rounds and event.purpose is Purpose.AGENT:
            self._log.info(Action.ROUND_STARTED)
            self._between_rounds = False
        self._called_at = event.at
