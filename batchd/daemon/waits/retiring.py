"""Warnings of models in use that their providers shut down soon:
once a day each, as long as they are in use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from batchd import catalog
from batchd.actions import Action
from batchd.catalog import Shutdown
from batchd.config import Config
from batchd.control import ModelWarning
from batchd.daemon.current import CurrentConfig
from batchd.daemon.listeners import Listener, Listeners
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.waits.offers import Offers
from batchd.daemon.writes import Writes
from batchd.errors import BatchdError
from batchd.lifecycle import Lifecycle
from batchd.log import get_logger
from batchd.records import Batch, Task
from batchd.store import Store

#: How often it is looked, beside when there is news: a day may have begun.
_LOOK_S = 600.0


@dataclass(slots=True, eq=False, repr=False)
class Retiring(Listener):
    """Looks which models in use end soon."""

    _loop: MainLoop
    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: Store
    _writes: Writes
    _listeners: Listeners
    _offers: Offers
    #: Those that are in use and end soon.
    due: tuple[ModelWarning, ...] = ()
    _config: Config = field(init=False)
    _seen: set[str] = field(default_factory=set)
    #: On which day people were warned of which model.
    _warned: dict[str, date] = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._config = self._current.config
        self._warned = self._store.warned()

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Look at once where it brings models that were not looked at."""
        if not {task.model for task in tasks} <= self._seen:
            self._news.set()

    def config_changed(self, config: Config) -> None:
        """Look again, and ask again where addresses may have changed:
        keys are read again at each try of what is parked.
        """
        old, self._config = self._config, config
        if config.providers != old.providers:
            self._offers.forget()
        if config != old:
            self._news.set()

    async def watch(self) -> None:
        """Look, for ever."""
        while True:
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
            self._news.clear()

    async def _look(self) -> None:
        """Warn of what is due, and was not warned of today."""
        models = self._models()
        for provider in dict.fromkeys(model.partition("/")[0] for model in models):
            await self._offers.ask(provider)
        self._seen = {*models}
        today = catalog.today()
        ends = [end for model in models if (end := self._offers.end(model)) and end.due(today)]
        self.due = tuple(self._warning(end, today) for end in ends)
        for end, warned in zip(ends, self.due, strict=True):
            if self._warned.get(warned.model) != today:
                self._warned[warned.model] = today
                warn = partial(self._store.warn, warned.model, today)
                self._loop.spawn(self._writes.durable(warn))
                get_logger().warning(
                    Action.MODEL_RETIRING,
                    model=warned.model,
                    message=warned.message,
                    mend=warned.mend,
                )
                self._listeners.model_retiring(end, warned.message, warned.mend)

    def _warning(self, end: Shutdown, today: date) -> ModelWarning:
        config, places = self._current.config, ["its task files"]
        if end.model == config.evaluation.judge_model:
            places = ["[evaluation] judge_model"]
        if end.model == config.agent.model:
            places = ["[agent] model", *places]
        day = end.on.isoformat() if end.on else None
        return ModelWarning(
            end.model, day, end.words(today), f"{end.fix}, in {' and '.join(places)}"
        )

    def _models(self) -> list[str]:
        """Return the models in use: those of tasks that have not ended,
        and those that tasks get by default.
        """
        config = self._current.config
        defaults = (config.agent.model, config.evaluation.judge_model)
        return list(dict.fromkeys((*filter(self._usable, defaults), *self._tasks())))

    def _tasks(self) -> Iterator[str]:
        return (model for model in sorted(self._lifecycle.models()) if "/" in model)

    def _usable(self, model: str) -> bool:
        """Whether a default can be used: without a key it means nothing to its user."""
        try:
            self._current.config.endpoint(model.partition("/")[0])
        except BatchdError:
            return False
        return True
