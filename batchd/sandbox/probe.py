"""Finds out whether commands can be sandboxed here, and what would mend it where they cannot."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.records import SandboxPolicy, hosts
from batchd.sandbox import launch
from batchd.sandbox.bwrap import view
from batchd.sandbox.folders import Folders
from batchd.sandbox.identity import Identity, as_root, limits, prefix
from batchd.sandbox.network import Allowed, Door

#: Older ones can be led out of the sandbox by a symbolic link during set-up.
_OLDEST = (0, 12)
_PATIENCE_S = 10.0
_OTHERWISE = 'or, without any protection, set `[sandbox] backend = "none"`'
_INSTALL = f"install bubblewrap 0.12 or newer (`apt-get install bubblewrap`), {_OTHERWISE}"
#: What every command must find in its own /proc/self/status.
_CONFINED = {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0" * 16, "CapBnd": "0" * 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that ``check`` looked at."""

    #: What was looked at, in a word or two.
    name: str
    ok: bool
    #: What holds, or what is wrong.
    detail: str
    #: How to put it right; empty where nothing is wrong.
    mend: str = ""


def ready(policy: SandboxPolicy) -> str:
    """Return the path of a bwrap that works here, empty under ``backend = "none"``.

    Raises ``SandboxUnavailableError``, with the mend, where there is none.
    """
    prefix(policy, _someone(policy), limited=False)
    if policy.backend == "none":
        return ""
    path = _found()
    _recent(path)
    _confining(path, policy)
    return path


def check(policy: SandboxPolicy) -> list[Finding]:
    """Return what holds of the sandbox here, and what would fail; looks at everything, raises nothing."""
    findings = [
        _finding("sandbox user", lambda: f"commands run as {_described(policy)}"),
        _finding("command limits", lambda: _limited(policy)),
    ]
    if policy.backend == "none":
        unprotected = (
            'backend = "none": commands can read and change whatever their user can, and a process that'
            " leaves its group can outlive its task; all have the whole network"
        )
        return [*findings, Finding(name="sandbox", ok=True, detail=unprotected)]
    findings.append(_finding("bubblewrap", lambda: f"version {_recent(_found())} at {_found()}"))
    if all(finding.ok for finding in findings):
        findings.append(_finding("sandbox", lambda: _confining(_found(), policy)))
    tried = bool(policy.network) and all(finding.ok for finding in findings)
    findings.append(
        _finding("sandbox network", lambda: f"{_way_out(policy) if tried else ''}{_reach(policy)}")
    )
    return findings


def _way_out(policy: SandboxPolicy) -> str:
    """Give a trial command the proxy of a list of hosts, and tell how it went. Raises ``SandboxUnavailableError``."""
    who = _someone(policy)
    mend = "allow batchd to enter the namespaces of its own commands (setns), or let no task have a list of hosts"
    try:
        with _folder_of(who) as directory:
            asyncio.run(_through_the_door(policy, who, directory))
    except (OSError, SandboxError) as error:
        raise SandboxUnavailableError(f"no list of hosts can be kept ({error}): {mend}") from error
    return "a trial command had the proxy; "


async def _through_the_door(policy: SandboxPolicy, who: Identity, directory: int) -> None:
    seen = view(policy, who, {}, network=False, gated=True)
    output = os.open(os.devnull, os.O_WRONLY)
    try:
        child = launch.sandboxed(
            _found(), seen, Folders(directory), [b"true"], stdin=None, output=output
        )
    finally:
        os.close(output)
    try:
        async with Door(Allowed(())).opened(child):
            await child.wait()
    finally:
        await child.end()


def _reach(policy: SandboxPolicy) -> str:
    """Return what tasks may reach, in words."""
    if not policy.network:
        return "no task has any network"
    private = (
        f"; private addresses only of {hosts.told(policy.private_hosts)}"
        if policy.private_hosts
        else "; private addresses are refused"
    )
    if isinstance(policy.network, bool):
        return (
            "tasks that ask for `true` share the host's network, services on its loopback included; those"
            f" that ask for a list of hosts reach these through a proxy{private}"
        )
    return f"tasks may ask for {hosts.told(policy.network)}, through a proxy{private}"


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=look())
    except SandboxUnavailableError as error:
        detail, _, mend = str(error).rpartition(": ")
        return Finding(name=name, ok=False, detail=detail, mend=mend)


def _limited(policy: SandboxPolicy) -> str:
    prefix(policy, _someone(policy), limited=False)
    return ", ".join(f"{name} {value:,}" for name, _, value in limits(policy))


def _someone(policy: SandboxPolicy) -> Identity:
    """Return who runs commands in fresh directories."""
    if as_root():
        return Identity.named(policy.user)
    return Identity.of(os.geteuid(), os.getegid())


def _described(policy: SandboxPolicy) -> str:
    who = _someone(policy)
    return (
        f"{who.name} (uid {who.uid}) in fresh directories, as the owner in others"
        if as_root()
        else who.name
    )


def _found() -> str:
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxUnavailableError(f"bubblewrap (bwrap) is not installed: {_INSTALL}")
    return str(Path(path).absolute())


def _recent(path: str) -> str:
    """Return bwrap's version. Raises ``SandboxUnavailableError`` for one that is too old."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            env={},
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
            # Out of the reach of a Ctrl-C, which would be taken for a broken bwrap.
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailableError(f"{path} does not run ({error}): {_INSTALL}") from error
    version = re.search(rb"(\d+)\.(\d+)(?:\.\d+)*", answer.stdout)
    if version is None:
        raise SandboxUnavailableError(f"{path} tells no version: {_INSTALL}")
    text = version[0].decode()
    if (int(version[1]), int(version[2])) < _OLDEST:
        raise SandboxUnavailableError(
            f"{path} has version {text}, from which a command can escape: {_INSTALL}"
        )
    return text


def _confining(path: str, policy: SandboxPolicy) -> str:
    """Run a command in a sandbox of the real kind, and tell how it went. Raises ``SandboxUnavailableError`` unless it is confined."""
    who = _someone(policy)
    try:
        with _folder_of(who) as directory:
            reached, output = _trial(path, policy, who, directory)
    except (OSError, SandboxError) as error:
        raise SandboxUnavailableError(f"no sandbox can be started ({error}): {_mend()}") from error
    if not reached:
        raise SandboxUnavailableError(
            f"no sandbox can be set up here ({output.strip()}): {_mend()}"
        )
    status = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
    if not status:
        raise SandboxUnavailableError(
            f"a trial command in the sandbox did not work ({output.strip() or 'it said nothing'}): {_mend()}"
        )
    loose = [name for name, value in _CONFINED.items() if status.get(name) != value]
    if loose or status.get("Uid", "").split("\t")[0] != str(who.uid):
        raise SandboxUnavailableError(
            f"a command in the sandbox is not confined ({', '.join(loose) or 'wrong user'}): {_OTHERWISE}"
        )
    return "a trial command ran confined, without capabilities, its system calls filtered"


@contextlib.contextmanager
def _folder_of(who: Identity) -> Iterator[int]:
    """Give a directory for a trial, open."""
    with tempfile.TemporaryDirectory(prefix="batchd-") as folder:
        if as_root():
            os.chown(folder, who.uid, who.gid)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield directory
        finally:
            os.close(directory)


def _trial(path: str, policy: SandboxPolicy, who: Identity, directory: int) -> tuple[bool, str]:
    command = [os.fsencode(word) for word in ("cat", "/proc/self/status")]
    seen = view(policy, who, {}, network=False)
    read_end, write_end = os.pipe()
    try:
        try:
            start = functools.partial(launch.sandboxed, path, seen, Folders(directory), command)
            child = start(stdin=None, output=write_end)
        finally:
            os.close(write_end)
        child.end_now()
        # A pipe holds more than this says; whoever it might be passed on to is not waited for.
        os.set_blocking(read_end, False)
        return child.reached, os.read(read_end, 1 << 16).decode("utf-8", "replace")
    except BlockingIOError:
        return False, "no output"
    finally:
        os.close(read_end)


def _mend() -> str:
    if as_root():
        return f"give the container CAP_SYS_ADMIN, or run batchd outside of it as an ordinary user, {_OTHERWISE}"
    return (
        "allow unprivileged user namespaces (`sysctl kernel.unprivileged_userns_clone=1`, on Ubuntu"
        f" `sysctl kernel.apparmor_restrict_unprivileged_userns=0`), or run batchd as root, {_OTHERWISE}"
    )
