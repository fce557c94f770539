"""What a task's events add up to.

The same events always fold to the same state, so resume, replay and tests come
free. Nothing here does any I/O or reads a clock.
"""

from batchd.taskstate.folding import apply, fold
from batchd.taskstate.shortening import ELIDED, GO_ON, NOTES, clipped
from batchd.taskstate.state import CONTINUE, Command, TaskState, Verdict

__all__ = [
    "CONTINUE",
    "ELIDED",
    "GO_ON",
    "NOTES",
    "Command",
    "TaskState",
    "Verdict",
    "apply",
    "clipped",
    "fold",
]
