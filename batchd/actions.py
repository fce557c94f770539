"""The actions: what log lines report, one list for people and machines.

Their words are published: an action is added, never renamed or removed.
"""

from __future__ import annotations

import enum


class Action(enum.StrEnum):
    """A log action: what a line reports."""

    DAEMON_STARTED = "daemon_started"
    DAEMON_STOPPING = "daemon_stopping"
    CONFIG_RELOADED = "config_reloaded"
    #: Somebody gave an order: its ``verb``, who (``uid``, ``pid``), with what, and what came of it.
    COMMAND_DONE = "command_done"
    COMMAND_REFUSED = "command_refused"
    #: At the level debug: somebody asked something that changes nothing.
    QUESTION_ANSWERED = "question_answered"
    BATCH_RECEIVED = "batch_received"
    BATCH_REJECTED = "batch_rejected"
    BATCH_FINISHED = "batch_finished"
    TASK_STARTED = "task_started"
    ROUND_STARTED = "round_started"
    #: At the level debug: what the agent does next, its ``step`` and ``detail``.
    STEP_STARTED = "step_started"
    #: At the level debug: a call asks for its turn and its money,
    #: and gets them, after ``waited_s``, or does not.
    PERMIT_ASKED = "permit_asked"
    PERMIT_GRANTED = "permit_granted"
    PERMIT_DENIED = "permit_denied"
    MODEL_CALLED = "model_called"
    MODEL_FAILED = "model_failed"
    #: A provider's count of tokens is more than its call can have come to:
    #: what was set aside is booked.
    USAGE_NOT_BELIEVED = "usage_not_believed"
    COST_NOT_BELIEVED = "cost_not_believed"
    #: A provider counts more output than its request allowed: the ``message`` has the fix.
    ANSWER_OVERLONG = "answer_overlong"
    #: A model refuses a part of what is sent, as ``refuses`` says, and works without it.
    MODEL_REFUSES = "model_refuses"
    #: A provider left out items of earlier answers that were sent back to it,
    #: for the ``reasons`` that it gives.
    ITEMS_REMOVED = "items_removed"
    TOOL_RAN = "tool_ran"
    #: A command wanted to reach hosts that its task may not reach.
    NETWORK_REFUSED = "network_refused"
    #: A command used more of the machine than it may, as its ``message`` says.
    LIMIT_PASSED = "limit_passed"
    ROUND_EVALUATED = "round_evaluated"
    CONTEXT_COMPACTED = "context_compacted"
    CLOCK_MOVED = "clock_moved"
    TASK_PARKED = "task_parked"
    TASK_FINISHED = "task_finished"
    RATE_LIMITED = "rate_limited"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROVIDER_PARKED = "provider_parked"
    MODEL_PARKED = "model_parked"
    BUDGET_REACHED = "budget_reached"
    #: A receiver was notified: the ``receiver``, the ``notification``'s id, its ``subject``.
    NOTIFIED = "notified"
    #: A receiver could not be notified, yet or for good:
    #: ``message``, and ``trying_again`` or the ``mend``.
    NOTIFY_FAILED = "notify_failed"
    WORKER_STARTED = "worker_started"
    WORKER_DIED = "worker_died"
    #: No worker comes up on the cluster: the ``message`` says why, and what helps.
    CLUSTER_TROUBLE = "cluster_trouble"
    #: No task can run on a ``node``, as the ``message`` says: its workers are sent away.
    NODE_TROUBLE = "node_trouble"
    INBOX_TROUBLE = "inbox_trouble"
    OUTBOX_TROUBLE = "outbox_trouble"
    STORE_TROUBLE = "store_trouble"
    #: What a task file or a task names does not answer, as on a disk over a lost network.
    PLACE_TROUBLE = "place_trouble"
    CONTROL_TROUBLE = "control_trouble"
    SANDBOX_TROUBLE = "sandbox_trouble"
    #: A repository, or the copy of a directory, is being fetched for a batch:
    #: its ``source``; and it is there, after ``waited_s``.
    MIRROR_FETCHING = "mirror_fetching"
    MIRROR_FETCHED = "mirror_fetched"
    #: No repository can be fetched for a while: the ``message`` says why, and what helps.
    MIRROR_TROUBLE = "mirror_trouble"
    #: A disk refuses a task's clone, copy or patch, or packs of 0.2.0 are dropped: its ``message``
    #: has the fix.
    DIRECTORY_TROUBLE = "directory_trouble"
    #: Workers do not come up: ``status`` says why, and what helps.
    WORKER_TROUBLE = "worker_trouble"
    #: Batches or claimed files of a store that was lost:
    #: the ``message`` says which, the ``mend`` has the fix.
    UNKNOWN_WORK = "unknown_work"
    #: A batch has no report; its results are none the worse.
    REPORT_TROUBLE = "report_trouble"
    #: A task or a file could move and has not for a minute,
    #: as the ``message`` says; or moves again.
    STALLED = "stalled"
    #: The outbox takes results, and not the file that says how the daemon stands.
    STATUS_UNWRITTEN = "status_unwritten"
    METRICS_TROUBLE = "metrics_trouble"
    TRACES_TROUBLE = "traces_trouble"
    #: A file or folder is open to whom it should not be: its ``path``, why, and the ``mend``.
    EXPOSED = "exposed"
    #: A warning of a library that we use, with its ``logger`` and ``message``.
    LIBRARY_WARNED = "library_warned"
    #: So many ``lines`` are missing here, since the reader of stderr stood still.
    LINES_LEFT_OUT = "lines_left_out"
