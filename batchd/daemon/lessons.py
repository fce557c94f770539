"""What models were seen to refuse and to do without: noted once, handed to every worker, forgotten after a week."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from functools import partial

import msgspec

from batchd import terms
from batchd.daemon.core import Core
from batchd.errors import ConfigError
from batchd.log import Action
from batchd.store import Refused

#: A model may have learned meanwhile to take it.
_KEPT_S = 7 * 86400.0
#: What becomes of it, in words.
_FIELD = "requests to it go without that from now on, and are tried with it in a week"
_EFFORT = "it is asked for the nearest lower effort that it has, or its lowest, and for this one in a week again"


def learned(core: Core, seen: Mapping[str, Iterable[str]]) -> None:
    """Note what a worker has seen models, by name, refuse; log what is new."""
    for model, lessons in seen.items():
        known, setting = known_of(core, model), _setting(core, model)
        for lesson in lessons:
            if lesson in known or not setting:
                continue
            refused = Refused(model, lesson, setting, time.time())
            core.refused[model, lesson] = refused
            core.log.info(
                Action.MODEL_REFUSES,
                model=model,
                refuses=lesson,
                message=_EFFORT if lesson.startswith("effort:") else _FIELD,
            )
            core.spawn(core.durable(partial(core.store.refuse, refused)))


def known_of(core: Core, model: str) -> tuple[str, ...]:
    """Return what a model refuses, as long as that is not too long ago and it is called as it was then."""
    if not any(name == model for name, _ in core.refused):
        return ()
    setting, since = _setting(core, model), time.time() - _KEPT_S
    return tuple(
        refused.lesson
        for (name, _), refused in core.refused.items()
        if name == model and refused.setting == setting and refused.at > since
    )


def _setting(core: Core, model: str) -> str:
    """Return what tells how a model is called today from how it was before; empty where it cannot be called."""
    try:
        setup = terms.setup(model, core.config, core.prices)
    except ConfigError:
        return ""
    base_url = core.config.providers[setup.provider].base_url
    called = (
        base_url.partition("?")[0],
        setup.api,
        setup.tools,
        setup.output_limit_field,
        setup.json_mode,
        setup.extra_body,
    )
    return hashlib.sha256(msgspec.json.encode(called)).hexdigest()[:16]
