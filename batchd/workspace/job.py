"""What the child that fetches is asked, and what it answers: a line of JSON each way."""

from __future__ import annotations

from msgspec import Struct

from batchd.records import Origin, SandboxPolicy


class Job(Struct, frozen=True, kw_only=True):
    """Have a mirror hold what a task asks for."""

    origin: Origin
    #: The mirror's ``kept``; it is made where it is missing.
    kept: str
    #: Whether to fetch; else what was fetched before counts.
    fetch: bool
    policy: SandboxPolicy
    #: Of a URL: the file of users and passwords, empty: none.
    credentials: str = ""
    timeout_s: float
    max_bytes: int


class Outcome(Struct, frozen=True, kw_only=True):
    """How that went."""

    #: The commit that the ref stands for; of a copy, the tree.
    commit: str = ""
    #: Why it cannot be had, in words; empty: it can.
    error: str = ""
