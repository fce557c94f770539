"""Labels of workers that have, or had, a task:
``PID`` on the daemon's machine, ``NODE/PID/FENCE`` on another one.
"""

from __future__ import annotations


def elsewhere(node: str, pid: int, fence_s: float) -> str:
    """Return it of a worker on another machine;
    ``fence_s``: how long after its daemon's end it may still change something.
    """
    return f"{node}/{pid}/{fence_s:g}"


def node(label: str) -> str:
    """Return the machine; empty: the daemon's, or none."""
    return label.partition("/")[0] if "/" in label else ""


def fence_s(label: str) -> float:
    """Return how long after its daemon's end a worker may still change something, in seconds."""
    return float(label.rpartition("/")[2]) if "/" in label else 0.0


def words(label: str) -> str:
    """Return which process it was, for people."""
    name, _, rest = label.rpartition("/")[0].partition("/")
    return f"{rest} on {name}" if rest else label
