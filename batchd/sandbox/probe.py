"""The probe of the sandbox; where none can be set up, it says how to fix that."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from batchd import trees
from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.records import SandboxPolicy
from batchd.sandbox import resource_shortage, shown
from batchd.sandbox.command_run import CommandEnd
from batchd.sandbox.command_user import CommandUser, as_root, prefix
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.network import AllowedHosts
from batchd.sandbox.output import CommandOutput
from batchd.sandbox.shown import Cover, ShownPaths
from batchd.sandbox.task_sandbox import CommandSetting, TaskSandbox

#: Older ones can be led out of the sandbox by a symbolic link during set-up.
_OLDEST = (0, 12)
_PATIENCE_S = 60.0
OTHERWISE = 'or, without any protection, set `[sandbox] backend = "none"`'
_INSTALL = f"install bubblewrap 0.12 or newer (`apt-get install bubblewrap`), {OTHERWISE}"
#: What helps where the system gives no more of something.
_LIMIT = "raise that limit for the user that batchd runs as"
#: What every command must find in its own /proc/self/status.
_CONFINED = {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0" * 16, "CapBnd": "0" * 16}


def ready(policy: SandboxPolicy) -> str:
    """Return the path of a bwrap that works here, empty under ``backend = "none"``.

    Raises ``SandboxUnavailableError``, with the fix, where there is none.
    """
    prefix(policy, someone(policy))
    if policy.backend == "none":
        return ""
    path = found()
    recent(path)
    confining(path, policy)
    return path


def someone(policy: SandboxPolicy) -> CommandUser:
    """Return who runs commands in fresh directories."""
    if as_root():
        return CommandUser.named(policy.user)
    return CommandUser.of(os.geteuid(), os.getegid())


def found() -> str:
    """Return the path of bwrap. Raises ``SandboxUnavailableError`` where there is none."""
    path = shutil.which("bwrap")
    if path is None:
        if there := shutil.which("bwrap", path=os.defpath):
            raise SandboxUnavailableError(
                f"bubblewrap is installed, but {there} is not on PATH: add {Path(there).parent} to it"
            )
        raise SandboxUnavailableError(f"bubblewrap (bwrap) is not installed: {_INSTALL}")
    return str(Path(path).absolute())


def recent(path: str) -> str:
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
        raise SandboxUnavailableError(f"{path} reports no version: {_INSTALL}")
    text = version[0].decode()
    if (int(version[1]), int(version[2])) < _OLDEST:
        raise SandboxUnavailableError(
            f"{path} has version {text}, from which a command can escape: {_INSTALL}"
        )
    return text


def confining(path: str, policy: SandboxPolicy) -> str:
    """Run a command in a sandbox of the real kind, and say how it went.

    Raises ``SandboxUnavailableError`` unless it is confined.
    """
    who = someone(policy)
    try:
        output = tried(path, policy).output
    except (OSError, SandboxError) as error:
        fix = _LIMIT if resource_shortage.short(error) else fix_for(policy)
        raise SandboxUnavailableError(f"no sandbox can be started ({error}): {fix}") from error
    status = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
    if not status:
        raise SandboxUnavailableError(
            f"a trial command in the sandbox did not work ({output.strip() or 'it printed nothing'}):"
            f" see that {who.name} may start programs, and one more process, {OTHERWISE}"
        )
    loose = [name for name, value in _CONFINED.items() if status.get(name) != value]
    if loose or status.get("Uid", "").split("\t")[0] != str(who.uid):
        raise SandboxUnavailableError(
            f"a command in the sandbox is not confined ({', '.join(loose) or 'wrong user'}): {OTHERWISE}"
        )
    return "a trial command ran confined, without capabilities, its system calls filtered"


def what_is_shown(policy: SandboxPolicy) -> ShownPaths:
    """Return what commands see. Raises ``SandboxUnavailableError`` for what cannot be shown."""
    try:
        return shown.of(policy, network=policy.network is True)
    except ValueError as error:
        raise SandboxUnavailableError(str(error)) from None


def tried(path: str, policy: SandboxPolicy, hosts: AllowedHosts | None = None) -> CommandEnd:
    """Have a command say in a sandbox how it is confined, wherever this is called.

    Raises ``OSError``, ``SandboxError``, ``SandboxUnavailableError``.
    """
    with tempfile.TemporaryDirectory(prefix="batchd-") as folder, ThreadPoolExecutor(1) as thread:
        who = someone(policy)
        if as_root():
            os.chown(folder, who.uid, who.gid)
        # Nothing is covered but what is hidden by name.
        cover = Cover(what_is_shown(policy), ())
        setting = CommandSetting(
            policy=policy, bwrap=path, who=who, cover=cover, hosts=hosts, patience_s=0.0
        )
        try:  # there may be a loop at work in this thread already
            trial = thread.submit(lambda: asyncio.run(_trial(setting, folder)))
        except RuntimeError as error:
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        return trial.result()


async def _trial(setting: CommandSetting, folder: str) -> CommandEnd:
    """Raises ``OSError``, ``SandboxError``."""
    with trees.held(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as directory:
        folders = TaskFolders(directory)
        disk = DiskUsage(folders, setting.policy, base=0)
        sandbox = TaskSandbox(setting, folders, disk, keeps=False)
        command = [b"cat", b"/proc/self/status"]
        output = CommandOutput(1 << 16, setting.masker)
        ran = await sandbox.run(command, stdin=None, timeout_s=_PATIENCE_S, output=output)
    if ran is None or ran.timed_out:
        raise SandboxError(f"a trial command did not come to its end: {sandbox.why}")
    return ran


def fix_for(policy: SandboxPolicy) -> str:
    """Return what lets a sandbox be set up."""
    hidden = "take out of [sandbox] hide what programs need to start, or " if policy.hide else ""
    if as_root():
        return f"{hidden}give the container CAP_SYS_ADMIN, or run batchd outside of it as an ordinary user, {OTHERWISE}"
    return (
        f"{hidden}allow unprivileged user namespaces (`sysctl kernel.unprivileged_userns_clone=1`, on Ubuntu"
        f" `sysctl kernel.apparmor_restrict_unprivileged_userns=0`), or run batchd as root, {OTHERWISE}"
    )
