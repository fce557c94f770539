"""The agent: decide (pure), perform (the only I/O), record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchd.agent.loop import AttemptEnd, run
    from batchd.agent.services import (
        AgentServices,
        Reply,
        StopSignal,
    )

__all__ = [
    "AgentServices",
    "AttemptEnd",
    "Reply",
    "StopSignal",
    "run",
]


def __getattr__(name: str) -> Any:
    # `batchd estimate` only looks at what an agent would say:
    # it need not wait for the model client to load.
    if name in __all__:
        from batchd.agent import loop, services

        return getattr(loop if name in {"AttemptEnd", "run"} else services, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
