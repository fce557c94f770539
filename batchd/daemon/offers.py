"""What providers offer: the models that stand in their lists, looked up once in a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from batchd.daemon.current_config import CurrentConfig
from batchd.errors import BatchdError
from batchd.pauses import aside

if TYPE_CHECKING:
    from batchd.catalog import ModelListing

#: A provider is not asked again within this time, in seconds.
_FRESH_S = 600.0
#: A list that has not come by then is given up; the thread that asks for it knows a shorter time.
_PATIENCE_S = 20.0


@dataclass(slots=True, eq=False, repr=False)
class Offers:
    """Asks providers for their models, and keeps what they answer."""

    _current: CurrentConfig
    #: By provider: when it was asked, and its list; None: it has none, or did not answer.
    _asked: dict[str, tuple[float, ModelListing | None]] = field(default_factory=dict)

    async def ask(self, provider: str) -> None:
        """Ask a provider for its list, unless it was asked lately. Raises nothing."""
        asked_at, _ = self._asked.get(provider, (-_FRESH_S, None))
        if time.monotonic() - asked_at < _FRESH_S:
            return
        try:
            endpoint = self._current.config.endpoint(provider)
        except BatchdError:
            return  # without a key there is no list

        def work() -> ModelListing | None:
            # It loads a client for HTTP, which nothing else here needs.
            from batchd.catalog import ModelListing, ask

            found = ask(endpoint)
            return found if isinstance(found, ModelListing) else None

        listing = None
        # In a thread that the end of the daemon does not wait for: a server may hold it up for
        # long. No thread is to be had, or no answer comes in time.
        with contextlib.suppress(RuntimeError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                listing = await aside(work, "models")
        self._asked[provider] = time.monotonic(), listing

    def explained(self, model: str, message: str) -> str:
        """Return what a provider said of a model that it does not have,
        and what is known beside that.
        """
        return "; ".join((message, *self._more(model)))

    def _more(self, model: str) -> Iterator[str]:
        provider, _, own = model.partition("/")
        _, listing = self._asked.get(provider, (0.0, None))
        if listing is None:
            return
        listed, today = listing.find(own), datetime.now(UTC).date()
        if listed is not None and listed.gone(today):
            yield listed.end(today)
        near = (f"{provider}/{name}" for name in listing.nearest(own))
        if names := [name for name in near if name != model]:  # a list of yesterday has it yet
            yield f"nearest are {', '.join(names)}"
