"""The findings of ``batchd check`` on the sandbox:
each of its layers on this machine, and the fix where one is missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.records import SandboxPolicy
from batchd.records.policy import listed as host_list
from batchd.sandbox import cgroup, seccomp
from batchd.sandbox.command_user import as_root, limits, prefix
from batchd.sandbox.network import AllowedHosts
from batchd.sandbox.probe import (
    OTHERWISE,
    confining,
    found,
    recent,
    someone,
    tried,
    what_is_shown,
)
from batchd.sandbox.shown import sockets
from batchd.words import amount, listed

_PR_GET_SECCOMP = 21
#: What an administrator or a distribution may have set,
#: the value that forbids user namespaces, and what allows them.
_SWITCHES = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that ``check`` looked at."""

    #: What was looked at, in a word or two.
    name: str
    ok: bool
    #: What holds, or what is wrong.
    detail: str
    #: How to put it right; empty where nothing is wrong.
    fix: str = ""


def check(policy: SandboxPolicy) -> list[Finding]:
    """Return what holds of the sandbox here, and what would fail;
    looks at everything, raises nothing.
    """
    findings = [
        _finding("sandbox user", lambda: f"commands run as {_described(policy)}"),
        _finding("limits of a process", lambda: _limited(policy)),
        _finding("limits of a command", lambda: _together(policy)),
    ]
    if policy.backend == "none":
        unprotected = (
            'backend = "none": commands can read and change whatever their user can, and a process that'
            " leaves its group can outlive its task; all have the whole network"
        )
        return [*findings, Finding(name="sandbox", ok=True, detail=unprotected)]
    findings += [
        _finding("user namespaces", _namespaces),
        _finding("system call filter", _filter),
    ]
    findings.append(_finding("bubblewrap", lambda: f"version {recent(found())} at {found()}"))
    if all(finding.ok for finding in findings):
        findings.append(_finding("sandbox", lambda: confining(found(), policy)))
    findings.append(_finding("sandbox view", lambda: _view(policy)))
    trial = bool(policy.network) and all(finding.ok for finding in findings)
    findings.append(
        _finding("sandbox network", lambda: f"{_way_out(policy) if trial else ''}{_reach(policy)}")
    )
    return findings


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=look())
    except (SandboxError, SandboxUnavailableError) as error:
        detail, _, fix = str(error).rpartition(": ")
        return Finding(name=name, ok=False, detail=detail, fix=fix)


def _described(policy: SandboxPolicy) -> str:
    """Return as whom commands run; as root, an ordinary user,
    but the owner of a directory that was there.

    Raises ``SandboxUnavailableError``.
    """
    who = someone(policy)
    return (
        f"{who.name} (uid {who.uid}) in fresh directories, as the owner in others"
        if as_root()
        else who.name
    )


def _limited(policy: SandboxPolicy) -> str:
    prefix(policy, someone(policy))
    return ", ".join(f"{name} {value:,}" for name, _, value in limits(policy))


def _together(policy: SandboxPolicy) -> str:
    """Return what holds all processes of a command together. Raises ``SandboxUnavailableError``."""
    disk = f"{amount(policy.max_disk_bytes)} on the disk, {amount(policy.tmp_bytes)} of it in /tmp"
    time = f"{policy.max_cpu_s:,g} s of processor time" if policy.max_cpu_s else ""
    kept = f"{amount(policy.max_memory_bytes)} of memory, {policy.max_processes:,} processes"
    group = cgroup.delegated(policy)
    if group is not None:
        cpus = f", {policy.max_cpus:g} processors" if policy.max_cpus else ""
        watched = ", ".join(filter(None, (time, disk)))
        return f"{kept}{cpus}, held by the kernel in {group.path}; {watched}, measured"
    why = (
        '[sandbox] cgroup is "none"'
        if policy.cgroup == "none"
        else "no cgroup is delegated to this process, as the units in systemd/ have it"
    )
    measured = ", ".join(filter(None, (kept, time, disk)))
    lost = "; max_cpus has no effect" if policy.max_cpus else ""
    return f"{measured}: measured twice a second, and killed above ({why}){lost}"


def _namespaces() -> str:
    """Describe the namespaces of a sandbox.

    Raises ``SandboxUnavailableError`` where that is forbidden.
    """
    if as_root():
        return "not needed, since batchd is root"
    for name, forbidden, allowing in _SWITCHES:
        if _setting(name) == forbidden:
            raise SandboxUnavailableError(
                f"{name.replace('/', '.')} is {forbidden}, which forbids them: `{allowing}`, or run batchd as"
                f" root, {OTHERWISE}"
            )
    return "allowed to ordinary users"


def _setting(name: str) -> str:
    """Return a setting of the kernel; empty where it is not there, or hidden from us."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _filter() -> str:
    """Describe the system call filter.

    Raises ``SandboxUnavailableError`` where there is none for this machine.
    """
    machine = platform.machine()
    seccomp.program(machine)
    if ctypes.CDLL(None).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        raise SandboxUnavailableError(
            f"this kernel filters no system calls: run one with CONFIG_SECCOMP_FILTER, {OTHERWISE}"
        )
    untested = "" if machine in seccomp.TESTED else ", built from the kernel's tables and never run"
    return f"rules for {machine}{untested}"


def _view(policy: SandboxPolicy) -> str:
    """Return what commands see of the machine, and which sockets are hidden from them.

    Raises ``SandboxError``, ``SandboxUnavailableError``.
    """
    hidden = sockets(what_is_shown(policy))
    shown = [path for path in policy.show if os.path.lexists(path)]
    missing = [path for path in policy.show if path not in shown]
    parts = [
        f"commands see {', '.join(['/usr', 'a little of /etc', *shown])}",
        f"not {', '.join(policy.hide)}" if policy.hide else "",
        f"{', '.join(missing)} of show: nothing is there" if missing else "",
        f"hidden: the sockets {listed(hidden)}" if hidden else "",
    ]
    return "; ".join(filter(None, parts))


def _way_out(policy: SandboxPolicy) -> str:
    """Give a trial command the proxy of a list of hosts, and say how it went.

    Raises ``SandboxUnavailableError``.
    """
    fix = "allow batchd to enter the namespaces of its own commands (setns), or let no task have a list of hosts"
    try:
        tried(found(), policy, AllowedHosts(()))
    except (OSError, SandboxError) as error:
        raise SandboxUnavailableError(f"no list of hosts can be kept ({error}): {fix}") from error
    return "a trial command had the proxy; "


def _reach(policy: SandboxPolicy) -> str:
    """Return what tasks may reach, in words."""
    if not policy.network:
        return "no task has any network"
    private = (
        f"; private addresses only of {host_list(policy.private_hosts)}"
        if policy.private_hosts
        else "; private addresses are refused"
    )
    if isinstance(policy.network, bool):
        return (
            "tasks that ask for `true` share the host's network, services on its loopback included; those"
            f" that ask for a list of hosts reach these through a proxy{private}"
        )
    return f"tasks may ask for {host_list(policy.network)}, through a proxy{private}"
