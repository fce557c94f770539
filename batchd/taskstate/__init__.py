"""The state of a task: what its events add up to.

The same events always fold to the same state, so resume, replay and tests come
free. Nothing here does any I/O or reads a clock.
"""

from batchd.taskstate.folding import apply as apply, fold as fold
from batchd.taskstate.state import (
    CONTINUE as CONTINUE,
    ELIDED as ELIDED,
    GO_ON as GO_ON,
    NOTES as NOTES,
    FinishedCommand as FinishedCommand,
    TaskState as TaskState,
    Verdict as Verdict,
    clipped as clipped,
)
