"""What a task's events add up to.

Whoever folds the same events gets the same state, so resume, replay and tests come
free. Nothing here does any I/O or reads a clock.
"""

from batchd.taskstate.folding import CONTINUE, ELIDED, apply, fold
from batchd.taskstate.state import TaskState, Verdict

__all__ = ["CONTINUE", "ELIDED", "TaskState", "Verdict", "apply", "fold"]
