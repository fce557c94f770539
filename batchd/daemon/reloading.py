"""Another configuration for a running daemon:
what SIGHUP reads, and what ``tune`` changes over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

from batchd import config as configuration, log
from batchd.config import Config
from batchd.config.loading import dotted, place_of
from batchd.daemon import main_loop, tuning
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.outboxes import Outboxes
from batchd.errors import BatchdError, UsageError
from batchd.governor import Governor
from batchd.log import Action, get_logger
from batchd.pool.supervisor import PoolShape, Supervisor
from batchd.sandbox import Sandbox
from batchd.spool import safety

Place = tuple[str, ...]

#: What is read at the start alone, and why.
_FIXED: Mapping[Place, str] = {
    ("paths",): "its folders are in use",
    ("log",): "the log is set up at the start",
    ("metrics",): "they are set up at the start",
    ("traces",): "they are set up at the start",
    ("workspace", "mirrors"): "clones of tasks lead there",
    ("pool", "engine"): "workers are where they are",
    ("ray",): "the cluster is joined at the start",
    ("spool", "watch"): "the inbox is watched from the start on",
    ("spool", "settle_s"): "the inbox is watched from the start on",
    ("spool", "scan_s"): "the inbox is watched from the start on",
}
#: What a configuration holds beside its sections.
_OF_THE_PROCESS = {"file", "environ", "base"}
#: Tables that may hold secrets: what is in them is not shown.
_SECRET = {"headers", "extra_body"}


@dataclass(slots=True, eq=False, repr=False)
class Reloader:
    """Gives every room the configuration values that can change while it runs."""

    _current: CurrentConfig
    _governor: Governor
    _pool: Supervisor
    _outboxes: Outboxes
    #: Returns the configuration as it stands in its file; None: there is none.
    _read: Callable[[], Config] | None
    #: Returns the pool that a configuration means.
    _shape: Callable[[Config], PoolShape]
    #: The configuration as it was read, without what ``tune`` changed: last, and at the start.
    _read_last: Config = field(init=False)
    _read_first: Config = field(init=False)
    _changes: dict[Place, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read_last = self._read_first = self._current.config

    async def reload(self) -> None:
        """Read the configuration again; keep the old one where the new one is wrong."""
        assert self._read is not None, "SIGHUP means something else then"
        lines = get_logger()
        try:
            read = await asyncio.to_thread(self._read)
            late = _late(self._current.config, read)
            self._take(configuration.changed(read, self._changes))
        except BatchdError as error:
            lines.error(Action.CONFIG_RELOADED, kept_old=True, message=str(error))
            return
        if read.paths.outbox != self._read_last.paths.outbox:
            self._outboxes.settle(read.paths.outbox)
        self._read_last = read
        self._governor.try_parked()
        # What is different, but read at the start alone.
        more = {"needs_restart": late} if late else {}
        lines.info(Action.CONFIG_RELOADED, file=read.file, **more)

    async def tune(self, wanted: Mapping[str, str], *, reset: bool) -> Mapping[str, str]:
        """Change single keys until the daemon ends, or take all such changes back;
        return all that is changed then.

        Raises ``UsageError`` for a key that cannot change now, ``ConfigError`` for a wrong value.
        """
        new = {place_of(key): text for key, text in wanted.items()}
        for place in new:
            if why := _fixed(place):
                raise UsageError(
                    f"{dotted(place)} cannot change while the daemon runs: {why}; write it into "
                    "config.toml, and restart the daemon"
                )
        changes = new if reset else self._changes | new
        if new or reset:
            self._take(configuration.changed(self._read_last, changes))
            self._changes = changes
            self._governor.try_parked()
        return shown({dotted(place): text for place, text in changes.items()})

    @property
    def overrides(self) -> Mapping[str, str]:
        """What ``tune`` changed, without secrets."""
        return shown({dotted(place): text for place, text in self._changes.items()})

    def unlike(self) -> tuple[list[str], list[str]]:
        """Return the keys that the file has otherwise than they are in force;
        the second: those that a start alone reads.

        For any thread. Raises ``BatchdError`` where the file cannot be read as it is now.
        """
        if self._read is None:
            return [], []
        read = self._read()
        found = [place for place in differing(self._read_last, read) if not _fixed(place)]
        return [dotted(place) for place in found], _late(self._read_first, read)

    def again(self) -> None:
        """Take over the present configuration once more: keys may have changed in their files."""
        self._take(self._current.config)

    def _take(self, config: Config) -> None:
        """Give every room a configuration.

        Raises ``BatchdError`` before anything is changed.
        """
        old = self._current.config
        # Inbox and state stay where they are; a batch keeps the outbox that it began with.
        paths = replace(config.paths, inbox=old.paths.inbox, state=old.paths.state)
        config = replace(config, paths=paths)
        safety.refuse_seen(config)
        if config.paths != old.paths:
            safety.insist(config)
        if config.sandbox != old.sandbox:
            Sandbox(config.sandbox_policy()).rest()  # as at the start: never without a working one
        log.hide(config.hidden())
        known, missing = tuning.endpoints(config)
        self._current.config = config
        main_loop.tell(lambda listener: listener.config_changed(config))
        self._governor.retune(config, missing)
        self._pool.retune(self._shape(config), tuning.settings(config, known))
        main_loop.wake()


def differing(one: object, other: object, at: Place = ()) -> Iterator[Place]:
    """Yield the places in which two configurations differ, and no value of them."""
    if one == other:
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            yield from differing(one.get(key), other.get(key), (*at, str(key)))
    elif is_dataclass(one) and type(one) is type(other):
        for name in (each.name for each in fields(one)):
            if at or name not in _OF_THE_PROCESS:
                yield from differing(getattr(one, name), getattr(other, name), (*at, name))
    else:
        yield at


def shown(changes: Mapping[str, Any]) -> dict[str, str]:
    """Return changes by their keys as they may be shown: without secrets."""
    return {
        str(key): "…" if _SECRET & set(str(key).split(".")) else str(text).partition("?")[0]
        for key, text in changes.items()
    }


def _fixed(place: Place) -> str:
    return next((why for fixed, why in _FIXED.items() if place[: len(fixed)] == fixed), "")


def _late(old: Config, new: Config) -> list[str]:
    """Return the keys in which the two differ, and which are read at the start alone."""
    places = [place for place in _FIXED if place != ("paths",)]
    places += [("paths", "inbox"), ("paths", "state")]
    values = {place: attrgetter(".".join(place)) for place in places}
    return [dotted(place) for place, value in values.items() if value(old) != value(new)]
