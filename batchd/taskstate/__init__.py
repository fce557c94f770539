"""The state of a task: what its events add up to.

The same events always fold to the same state, so resume, replay and tests come
free. Nothing here does any I/O or reads a clock.
"""

from batchd.taskstate.folding import apply, fold
from batchd.taskstate.state import (
    CONTINUE,
    ELIDED,
    GO_ON,
    NOTES,
    FinishedCommand,
    TaskState,
    Verdict,
    clipped,
)
