"""The agent: decide (pure), perform (the only I/O), record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchd.agent.host import Host, Reply, StopSignal
    from batchd.agent.loop import Ended, run

__all__ = ["Ended", "Host", "Reply", "StopSignal", "run"]


def __getattr__(name: str) -> Any:
    # `batchd estimate` only looks at what an agent would say: it need not wait for the model client to load.
    if name in __all__:
        from batchd.agent import host, loop  # noqa: PLC0415 (see above)

        return getattr(loop if name in {"Ended", "run"} else host, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
