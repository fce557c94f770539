"""What a model learns near the end of its task's limits."""

from __future__ import annotations

import pytest

from batchd import events
from batchd.agent import prompts
from batchd.records import ModelSetup, Purpose, Tally, TaskLimits
from batchd.taskstate import TaskState

SETUP = ModelSetup(name="demo/m")


def state(calls: int = 0, tokens: int = 0, seconds: float = 0.0, dollars: float = 0.0) -> TaskState:
    """Return a task that has used so much."""
    used = Tally(calls=calls, input_tokens=tokens, input_usd=dollars)
    return TaskState(
        first_prompt="x",
        terms=events.Terms(model=SETUP, judge=SETUP),
        spend={Purpose.AGENT: used},
        started_at=1.0,
        last_at=1.0,
        run_s=seconds,
    )


@pytest.mark.parametrize(
    ("limits", "used", "said"),
    [
        (TaskLimits(max_calls=10), state(calls=8), "2 model calls"),
        (TaskLimits(max_calls=10), state(calls=7), ""),
        (TaskLimits(max_calls=0), state(calls=70), ""),
        (TaskLimits(max_tokens=10_000), state(tokens=8_001), "1,999 tokens"),
        (TaskLimits(timeout_s=100), state(seconds=90.0), "10 seconds"),
        (TaskLimits(max_cost_usd=1.0), state(dollars=0.9), "$0.1000"),
        (
            TaskLimits(max_calls=10, max_tokens=100),
            state(calls=9, tokens=90),
            "1 model call, 10 tokens",
        ),
    ],
)
def test_what_is_nearly_used_up_is_named(limits: TaskLimits, used: TaskState, said: str) -> None:
    """From four fifths on, by what is left of each; nothing of what has no limit."""
    left = prompts.left(limits, used, 1.0)
    assert left == (
        f"[Limits are nearly used up. Left: {said}. Finish what matters most.]" if said else ""
    )
