"""The least cost of tasks' first calls, as far as it is known before they begin."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchd import terms
from batchd.daemon.tuning import CurrentConfig
from batchd.errors import InputError
from batchd.governor import WantedCall
from batchd.records import Ref, Task
from batchd.store import Store

#: Most texts have more characters a token than the first, and fewer than the second.
_MIN_CHARS_PER_TOKEN, _MAX_CHARS_PER_TOKEN = 3, 6
#: No call is made that has room for less output; a small window leaves an eighth of it.
_LEAST_OUTPUT, _WINDOWS_SHARE = 256, 8


@dataclass(slots=True, eq=False, repr=False)
class FirstCalls:
    """Learns from some first calls what comes with each prompt:
    nothing is counted here, tokens are the workers' business.
    """

    _current: CurrentConfig
    _store: Store
    #: By what else is sent: the tokens beside the first prompt.
    _beside: dict[tuple[str, str, bool], int] = field(default_factory=dict)

    def learn(self, call: WantedCall) -> None:
        """Take a call that was asked for, if it is the first of its task."""
        store = self._store
        if store.task_money(call.ref).total:
            return
        task = store.task(call.ref)
        beside = max(0, call.input_tokens - len(task.first_prompt) // _MIN_CHARS_PER_TOKEN)
        key = _alike(task)
        self._beside[key] = min(beside, self._beside.get(key, beside))

    def least(self, ref: Ref) -> WantedCall | None:
        """Return the first call of a task as cheap as it may be; None where that cannot be said."""
        task = self._store.task(ref)
        try:
            setup = terms.setup(task.model, self._current.config, self._current.prices)
        except InputError:
            return None
        output, window = task.limits.max_output_tokens, setup.context_window
        if window:
            output = min(output, max(_LEAST_OUTPUT, window // _WINDOWS_SHARE))
        beside = self._beside.get(_alike(task), 0)
        return WantedCall(
            ref=ref,
            model=task.model,
            price=setup.price,
            input_tokens=beside + len(task.first_prompt) // _MAX_CHARS_PER_TOKEN,
            max_output_tokens=output,
            tier=task.service_tier,
            fallback_s=task.tier_fallback_s,
        )


def _alike(task: Task) -> tuple[str, str, bool]:
    return task.model, task.system_prompt, bool(task.secrets)
