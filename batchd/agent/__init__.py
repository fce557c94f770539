"""The agent: decide (pure), perform (the only I/O), record."""

from batchd.agent.host import Host, Reply, StopSignal
from batchd.agent.loop import Ended, run

__all__ = ["Ended", "Host", "Reply", "StopSignal", "run"]
