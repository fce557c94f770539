"""What the stand-in does to every request; may be changed while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchd import decoders
from standin import scripts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the stand-in does to every request."""

    #: Seconds before each answer.
    latency_s: float = 0.0
    #: Delays answers by their length; 0 answers at once.
    tokens_per_second: float = 0.0
    #: Requests a second that all clients together may make; 0 is no limit.
    rps: float = 0.0
    #: How many of them at once after a rest.
    burst: float = 1.0
    #: The same for tokens: those of the prompt and of the answer.
    tps: float = 0.0
    token_burst: float = 1.0
    #: What a 429 asks the client to wait; 0: it does not say.
    retry_after_s: float = 1.0
    #: Whether answers report the limits in their headers.
    limit_headers: bool = True
    #: Whether tokens are counted; otherwise usage is a fixed number.
    count: bool = True
    #: Whether every connection is closed without an answer.
    down: bool = False
    #: Faults in front of those of every model name: ``401``, ``latency-1+503-2``.
    faults: str = ""
    #: The part of all requests that ``faults`` strike, evenly spread.
    share: float = 1.0
    #: Faults of single models, by name, in front of all others: ``{"steps-3": "401"}``.
    model_faults: Mapping[str, str] = field(default_factory=dict)
    #: How a model of an unknown name answers: ``demo``, ``steps-2``; empty refuses it.
    default: str = ""
    #: The models that it has and lists, each with the day it is shut down, or with nothing; empty:
    #: all names that mean something here. Any other is not found.
    models: Mapping[str, str] = field(default_factory=dict)
    #: What clients must send as their key; empty lets everyone in.
    api_key: str = ""
    #: The moment that it bills by, in seconds since the epoch; 0: the real one.
    now: float = 0.0

    def __post_init__(self) -> None:
        for parts in (self.faults, self.default, *self.model_faults.values()):
            if parts:
                scripts.parse(parts)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share} is not between 0 and 1")


def changed(settings: ServerSettings, changes: Mapping[str, Any]) -> ServerSettings:
    """Return the settings with some of them changed.

    Raises ``ValueError`` for what is none of them.
    """
    if unknown := changes.keys() - {f.name for f in dataclasses.fields(ServerSettings)}:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    return decoders.convert({**dataclasses.asdict(settings), **changes}, ServerSettings)
