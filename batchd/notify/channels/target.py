"""Where a message goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from batchd.config import Config
from batchd.config.receivers import ReceiverSection
from batchd.masking import Masker


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverTarget:
    """A receiver, with what it takes to reach it."""

    #: As ``[notify.NAME]`` has it.
    name: str
    settings: ReceiverSection
    #: Where secrets are read from, at each try.
    environ: Mapping[str, str] = field(repr=False)
    #: Knows what no text may show.
    masker: Masker = field(compare=False, repr=False)


def targets(config: Config) -> Iterator[ReceiverTarget]:
    """Yield all receivers of a configuration."""
    masker = Masker(config.hidden())
    for name, settings in config.notify.items():
        yield ReceiverTarget(name=name, settings=settings, environ=config.environ, masker=masker)
