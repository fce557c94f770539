"""Warns of models in use that their providers shut down soon: once a day each, as long as they are in use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial

from batchd import catalog
from batchd.catalog import Shutdown
from batchd.config import Config
from batchd.control import Warned
from batchd.daemon.core import Core
from batchd.daemon.listener import Listener
from batchd.daemon.offers import Offers
from batchd.errors import BatchdError
from batchd.log import Action
from batchd.records import Batch, Task

#: How often it is looked, beside when there is news: a day may have begun.
_LOOK_S = 600.0


class Retiring(Listener):
    """Looks at the models in use."""

    def __init__(self, core: Core, offers: Offers) -> None:
        self._core = core
        self._offers = offers
        self._config = core.config
        #: Those that are in use and end soon.
        self.due: tuple[Warned, ...] = ()
        self._seen: set[str] = set()
        #: On which day people were warned of which model.
        self._warned = core.store.warned()
        self._news = asyncio.Event()

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:  # noqa: ARG002 (a listener's)
        """Look at once where it brings models that were not looked at."""
        if not {task.model for task in tasks} <= self._seen:
            self._news.set()

    def config_changed(self, config: Config) -> None:
        """Look again, and ask again where addresses may have changed: keys are read again at each try of what is parked."""
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
        self.due = tuple(self._told(end, today) for end in ends)
        for end, told in zip(ends, self.due, strict=True):
            if self._warned.get(told.model) != today:
                self._warned[told.model] = today
                warn = partial(self._core.store.warn, told.model, today)
                self._core.spawn(self._core.durable(warn))
                self._core.log.warning(
                    Action.MODEL_RETIRING, model=told.model, message=told.message, mend=told.mend
                )
                self._core.listeners.model_retiring(end, told.message, told.mend)

    def _told(self, end: Shutdown, today: date) -> Warned:
        config, places = self._core.config, ["its task files"]
        if end.model == config.evaluation.judge_model:
            places = ["[evaluation] judge_model"]
        if end.model == config.agent.model:
            places = ["[agent] model", *places]
        day = end.on.isoformat() if end.on else None
        return Warned(end.model, day, end.words(today), f"{end.fix}, in {' and '.join(places)}")

    def _models(self) -> list[str]:
        """Return the models in use: those of tasks that have not ended, and those that tasks get by default."""
        config = self._core.config
        defaults = (config.agent.model, config.evaluation.judge_model)
        return list(dict.fromkeys((*filter(self._usable, defaults), *self._tasks())))

    def _tasks(self) -> Iterator[str]:
        return (model for model in sorted(self._core.lifecycle.models()) if "/" in model)

    def _usable(self, model: str) -> bool:
        """Whether a default can be used: without a key it means nothing to its user."""
        try:
            self._core.config.endpoint(model.partition("/")[0])
        except BatchdError:
            return False
        return True
