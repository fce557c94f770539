"""The messages of ``check``: what a running daemon sees as its own user, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from batchd.control.requests import ControlRequest

LineVerdict: TypeAlias = Literal["ok", "note", "failed"]


class CheckLine(msgspec.Struct, frozen=True):
    """One thing looked at: a line of ``batchd check``."""

    #: ``note``: it works, but know it.
    verdict: LineVerdict
    what: str
    detail: str
    mend: str = ""
    #: Always null: the billed call that up to 0.2.0 a line could be about.
    live: None = None


class DaemonProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon as the kernel knows it."""

    pid: int
    version: str
    #: Who it runs as: the number, and the name where the number has one.
    uid: int
    user: str = ""
    #: By their names, or their numbers where they have none.
    groups: tuple[str, ...] = ()


class SettingsInForce(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration in force, by where it comes from; no value of it but folders."""

    #: The file; empty: there is none.
    file: str = ""
    #: As ``[paths]`` has them.
    paths: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: The keys that the file has otherwise by now: those that a reload takes over, …
    stale: tuple[str, ...] = ()
    #: … and those that are read at a start alone.
    late: tuple[str, ...] = ()
    #: Why the file could not be read again; empty: it could.
    unread: str = ""
    #: What ``tune`` changed, by ``SECTION.KEY``, without secrets.
    overrides: Mapping[str, str] = msgspec.field(default_factory=dict)


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Check``: what the daemon sees."""

    process: DaemonProcess
    settings: SettingsInForce = SettingsInForce()
    #: What it looked at, in the order of the screen.
    lines: tuple[CheckLine, ...] = ()


class Check(ControlRequest[Checked], frozen=True, kw_only=True):
    """The request that the daemon looks for what would fail."""

    #: Without asking any provider.
    offline: bool = False
    #: Refused: up to 0.2.0 it asked each model in use for one token, which is billed.
    live: bool = False
