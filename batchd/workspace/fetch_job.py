"""Jobs of the daemon's child for mirrors, and their outcome: JSON each way."""

from __future__ import annotations

from msgspec import Struct

from batchd.records import Origin, SandboxPolicy
from batchd.workspace.mirrors import Pin


class FetchJob(Struct, frozen=True, kw_only=True):
    """The job to bring a mirror up to what a task asks for."""

    origin: Origin
    #: The mirror's ``kept``; it is made where it is missing.
    kept: str
    #: Whether to fetch; else what was fetched before counts.
    fetch: bool
    #: What a batch has used of it, to which the commit is added; None: nothing is noted.
    pin: Pin | None = None
    policy: SandboxPolicy
    #: Of a URL: the file of users and passwords, empty: none.
    credentials: str = ""
    timeout_s: float
    max_bytes: int


class FetchOutcome(Struct, frozen=True, kw_only=True):
    """The outcome of such a job."""

    #: The commit that the ref stands for; of a copy, the tree.
    commit: str = ""
    #: Why it cannot be done, in words; empty: it is.
    error: str = ""
    #: What the disk refused it with; 0: that was not the cause.
    errno: int = 0
