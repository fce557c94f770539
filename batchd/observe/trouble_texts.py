"""What the daemon cannot do at this time, in words."""

from __future__ import annotations

from collections.abc import Iterator

from batchd.control import OpenTrouble
from batchd.log import escape
from batchd.words import moment

#: What the daemon meets.
_WHAT = {
    "outbox_trouble": "results cannot be written, so tasks that would leave some there do not start",
    "sandbox_trouble": "commands cannot be run, so no task starts",
    "directory_trouble": "a task's directory, or its patch, cannot be written here",
    "mirror_trouble": "no repository can be fetched, so tasks with one wait",
    "worker_trouble": "some tasks have no worker, so they do not start",
    "cluster_trouble": "no new worker starts on the Ray cluster, so tasks wait for the present ones",
    "node_trouble": "a machine cannot run tasks, and gets none",
    "inbox_trouble": "files cannot be dropped into the inbox, or cannot be taken up",
    "place_trouble": "files and tasks that name something there wait",
    "control_trouble": "the control socket was removed, and cannot be made again",
    "store_trouble": "the store cannot be written, or its disk is full: no call is made that it cannot record",
    "stalled": "something could go on and does not",
    "metrics_trouble": "no metrics, but tasks go on",
    "traces_trouble": "no traces, but tasks go on",
}


def what(trouble: OpenTrouble) -> str:
    """Return what fails, and what that means for tasks."""
    if trouble.what == "outbox_trouble" and (names := trouble.batches):
        return f"results of {', '.join(names)} cannot be written, so none of its tasks starts"
    return _WHAT.get(trouble.what, trouble.what)


def lines(trouble: OpenTrouble) -> Iterator[str]:
    """Yield two lines: what fails since when, and the fix."""
    yield escape(f"Trouble since {moment(trouble.since)}: {what(trouble)}. {trouble.message}")
    yield escape(f"  To go on: {trouble.mend}")
