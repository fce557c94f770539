"""The agent: decide (pure), perform (the only I/O), record."""

from batchd.agent.loop import Ended, Host, Reply, StopSignal, run

__all__ = ["Ended", "Host", "Reply", "StopSignal", "run"]
