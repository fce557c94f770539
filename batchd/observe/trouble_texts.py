"""What the daemon cannot do at this time, in words."""

from __future__ import annotations

from collections.abc import Iterator

from batchd.control import OpenTrouble
from batchd.log import escape
from batchd.words import moment

#: What the daemon meets.
_WHAT = {
    "outbox_trouble": "results cannot be written, so nothing is started that would leave any there",
    "sandbox_trouble": "commands cannot be run, so nothing is started",
    "directory_trouble": "what a task has changed elsewhere is not in its directory here",
    "mirror_trouble": "no repository can be fetched, so tasks with one wait",
    "worker_trouble": "no worker is there for some tasks, so they are not started",
    "cluster_trouble": "no worker comes up on the Ray cluster, so tasks wait for those that are there",
    "node_trouble": "a machine cannot run tasks, and gets none",
    "inbox_trouble": "files in the inbox cannot be taken up",
    "control_trouble": "the control socket, which was taken away, cannot be made again",
    "store_trouble": "the store cannot be written, so nothing new is asked for",
    "stalled": "something could go on and does not",
    "unknown_work": "nothing becomes of what another store left here",
    "metrics_trouble": "no metrics, but tasks go on",
    "traces_trouble": "no traces, but tasks go on",
}


def what(trouble: OpenTrouble) -> str:
    """Return what fails, and what that means for tasks."""
    if trouble.what == "outbox_trouble" and (names := trouble.batches):
        return f"results of {', '.join(names)} cannot be written, so none of its tasks is started"
    return _WHAT.get(trouble.what, trouble.what)


def lines(trouble: OpenTrouble) -> Iterator[str]:
    """Yield two lines: what fails since when, and the fix."""
    yield escape(f"Trouble since {moment(trouble.since)}: {what(trouble)}. {trouble.message}")
    yield escape(f"  To go on: {trouble.mend}")
