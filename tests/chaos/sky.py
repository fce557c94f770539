"""The providers' weather: what a model server does to its clients for a while."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from arena import Model


@dataclass(frozen=True)
class Weather:
    """One kind of weather."""

    name: str
    #: As ``standin.faults`` has them.
    faults: str
    #: How often it comes, beside the others.
    weight: int = 10
    #: The shares of the requests that it may strike.
    shares: tuple[float, ...] = (1.0, 0.5, 0.1)
    #: How long it is felt after it has gone: a Retry-After that is waited out.
    felt_s: float = 0.0


KINDS = (
    Weather("429, short wait", "retry-after-1+429", 20),
    Weather("429, a wait of 20 s", "retry-after-20+429", 6, felt_s=20.0),
    Weather("429, a wait of a day", "retry-after-86400+429", 20),
    Weather("429 without a wait", "retry-after-0+429", 6),
    Weather("401", "401", 15),
    Weather("402", "402", 5),
    Weather("no quota", "insufficient-quota", 5),
    Weather("500", "500"),
    Weather("503", "503"),
    Weather("503, wait of a day", "retry-after-86400+503", 5),
    Weather("no answer", "hang"),
    Weather("half an answer", "hang-body", 5),
    Weather("cut before the answer", "cut"),
    Weather("cut within the answer", "cut-body", 5),
    Weather("a byte a second", "drip", 3),
    Weather("HTML", "html", 5),
    Weather("broken JSON", "broken-json", 5),
    Weather("no choices", "no-choices", 5),
    Weather("an error as 200", "error-200", 5),
    Weather("slow", "latency-1.5", 10, shares=(1.0, 0.5)),
)
#: What concerns a whole server, and has no share: nothing is sent back, it is dead, it is stopped.
_OUTAGES = ("down", "dead", "stopped")
_OUTAGE_SHARE = 0.25


class Sky:
    """The weather over some providers, one kind at a time over each."""

    def __init__(self, models: Mapping[str, Model], lanes: Collection[str]) -> None:
        """``models``: the server of each provider;
        ``lanes``: ``provider/model`` of all that is asked.
        """
        self._models = models
        self._lanes = lanes
        self._clouded: set[str] = set()

    def clouds(
        self, rng: random.Random
    ) -> tuple[str, Collection[str], float, Callable[[], None]] | None:
        """Let weather begin over a clear provider:
        its name, its lanes, how long it is felt, what ends it.
        """
        clear = sorted(self._models.keys() - self._clouded)
        if not clear:
            return None
        provider = rng.choice(clear)
        self._clouded.add(provider)
        if rng.random() < _OUTAGE_SHARE:
            return self._outage(provider, rng.choice(_OUTAGES))
        (kind,) = rng.choices(KINDS, [k.weight for k in KINDS])
        lanes = sorted(lane for lane in self._lanes if lane.startswith(f"{provider}/"))
        model = self._models[provider]
        if rng.random() < 0.5:
            lane = rng.choice(lanes)
            model.control(model_faults={lane.partition("/")[2]: kind.faults})
            return f"{lane}: {kind.name}", {lane}, kind.felt_s, self._clearing(provider)
        share = rng.choice(kind.shares)
        model.control(faults=kind.faults, share=share)
        name = f"{provider}: {kind.name}, {share:.0%} of all requests"
        return name, lanes, kind.felt_s, self._clearing(provider)

    def _clearing(self, provider: str) -> Callable[[], None]:
        def clear() -> None:
            self._models[provider].control(faults="", share=1.0, model_faults={}, down=False)
            self._clouded.discard(provider)

        return clear

    def _outage(
        self, provider: str, how: str
    ) -> tuple[str, Collection[str], float, Callable[[], None]]:
        model = self._models[provider]
        clear = self._clearing(provider)
        end = clear
        if how == "down":
            model.control(down=True)
        elif how == "dead":
            model.kill()

            def end() -> None:
                model.start()
                clear()

        else:
            model.signal(signal.SIGSTOP)

            def end() -> None:
                model.signal(signal.SIGCONT)
                clear()

        lanes = {lane for lane in self._lanes if lane.startswith(f"{provider}/")}
        return f"{provider}: {how}", lanes, 0.0, end
