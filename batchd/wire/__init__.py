"""The messages between the daemon and its workers, on its machine or on another one, as frames on a stream socket.

A worker owns no durable state. ``vocabulary`` is what all of them speak, ``elsewhere`` what those on other machines
speak beside that, ``frames`` how it is written.
"""

from __future__ import annotations

from batchd.wire.elsewhere import (
    Join,
    Keys,
    LeaseRenewed,
    Leaving,
    NotAdmitted,
    PatchKept,
    PatchMade,
    WorkerEnded,
)
from batchd.wire.frames import MAX_FRAME, MAX_HISTORY, Down, Up, handed, pack, raw, unpack, unraw
from batchd.wire.vocabulary import (
    Ack,
    Ask,
    Cancel,
    Denied,
    Done,
    DoneAs,
    Drain,
    Failed,
    Granted,
    Heartbeat,
    Hello,
    History,
    Nack,
    Park,
    Progress,
    Record,
    Retune,
    Run,
    Settings,
)

__all__ = [
    "MAX_FRAME",
    "MAX_HISTORY",
    "Ack",
    "Ask",
    "Cancel",
    "Denied",
    "Done",
    "DoneAs",
    "Down",
    "Drain",
    "Failed",
    "Granted",
    "Heartbeat",
    "Hello",
    "History",
    "Join",
    "Keys",
    "LeaseRenewed",
    "Leaving",
    "Nack",
    "NotAdmitted",
    "Park",
    "PatchKept",
    "PatchMade",
    "Progress",
    "Record",
    "Retune",
    "Run",
    "Settings",
    "Up",
    "WorkerEnded",
    "handed",
    "pack",
    "raw",
    "unpack",
    "unraw",
]
