"""Lessons about models, what they refuse and do without:
noted once, handed to every worker, forgotten after a week."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from batchd import terms
from batchd.daemon import main_loop
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.writes import DaemonStore
from batchd.errors import ConfigError
from batchd.log import Action, get_logger
from batchd.store import lookups, operations
from batchd.store.rows import LearntRefusal

#: A model may have learned meanwhile to take it.
_KEPT_S = 7 * 86400.0
#: What becomes of it, in words.
_FIELD = "batchd leaves that out of its requests from now on, and tries it again in a week"
_EFFORT = "batchd asks it for the nearest lower effort that it has, or its lowest, and tries this one again in a week"


@dataclass(slots=True, eq=False, repr=False)
class Lessons:
    """What providers refuse, and requests leave out."""

    _current: CurrentConfig
    _store: DaemonStore
    #: By model and lesson.
    _refused: dict[tuple[str, str], LearntRefusal] = field(default_factory=dict)

    def restore(self) -> None:
        """Take up what earlier daemons noted."""
        self._refused.update({(r.model, r.lesson): r for r in self._store.read(lookups.refused)})

    def learned(self, seen: Mapping[str, Iterable[str]]) -> None:
        """Note what a worker has seen models, by name, refuse; log what is new."""
        for model, lessons in seen.items():
            known, setting = self.of(model), self._setting(model)
            for lesson in lessons:
                if lesson in known or not setting:
                    continue
                refused = LearntRefusal(model, lesson, setting, time.time())
                self._refused[model, lesson] = refused
                get_logger().info(
                    Action.MODEL_REFUSES,
                    model=model,
                    refuses=lesson,
                    message=_EFFORT if lesson.startswith("effort:") else _FIELD,
                )
                main_loop.spawn(self._store.write(operations.refuse, refused))

    def of(self, model: str) -> tuple[str, ...]:
        """Return what a model refuses,
        as long as that is not too long ago and it is called as it was then.
        """
        if not any(name == model for name, _ in self._refused):
            return ()
        setting, since = self._setting(model), time.time() - _KEPT_S
        return tuple(
            refused.lesson
            for (name, _), refused in self._refused.items()
            if name == model and refused.setting == setting and refused.at > since
        )

    def _setting(self, model: str) -> str:
        """Return what distinguishes how a model is called today from how it was before;
        empty where it cannot be called.
        """
        config = self._current.config
        try:
            setup = terms.setup(model, config)
        except ConfigError:
            return ""
        base_url = config.providers[setup.provider].base_url
        called = (
            base_url.partition("?")[0],
            setup.api,
            setup.tools,
            setup.output_limit_field,
            setup.json_mode,
            setup.extra_body,
        )
        return hashlib.sha256(msgspec.json.encode(called)).hexdigest()[:16]
