"""The agent: decide (pure), perform (the only I/O), record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchd.agent.files import Here, Places
    from batchd.agent.host import Host, Reply, StopSignal
    from batchd.agent.loop import Ended, run

__all__ = ["Ended", "Here", "Host", "Places", "Reply", "StopSignal", "run"]


def __getattr__(name: str) -> Any:
    # `batchd estimate` only looks at what an agent would say: it need not wait for the model client to load.
    if name in __all__:
        from batchd.agent import files, host, loop  # noqa: PLC0415 (see above)

        places = {"Ended": loop, "run": loop, "Here": files, "Places": files}
        return getattr(places.get(name, host), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
