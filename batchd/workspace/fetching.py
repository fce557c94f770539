"""The fetch of what a mirror is to hold:
a repository's branches and tags, or a copy of a directory.

What lies on this machine is read in the sandbox, as its owner: a dropper reads nothing by batchd's
rights, and what a repository has git run stays in there. A URL is fetched outside, since the keys
to it stay there, and touches nothing that a task or a dropper has written.

It is done by a child of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from batchd import decoders, free_room, processes
from batchd.errors import FolderError, SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.records import Origin, SandboxPolicy
from batchd.sandbox import CommandEnd, Sandbox
from batchd.sandbox.command_user import as_root
from batchd.sandbox.probe import ready
from batchd.workspace import git
from batchd.workspace.mirrors import Mirror, Pin

_HASH = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")
#: The limit of a mirror in place of the sandbox's.
_LIMIT = ("[sandbox] max_disk_bytes", "[workspace] max_mirror_bytes")
_FETCH, _RESOLVE, _COPY = (git.text(name) for name in ("fetch", "resolve", "copy"))


class FetchJob(msgspec.Struct, frozen=True, kw_only=True):
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


class FetchOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of such a job."""

    #: The commit that the ref stands for; of a copy, the tree.
    commit: str = ""
    #: Why it cannot be done, in words; empty: it is.
    error: str = ""
    #: What the disk refused it with; 0: that was not the cause.
    errno: int = 0


def main() -> int:
    """Do what is asked for, one after another."""
    processes.end_with(sys.argv[1])
    return processes.serve(_answers)


def _answers(job: bytes) -> Iterator[bytes]:
    yield msgspec.json.encode(asyncio.run(_outcome(decoders.decode(job, FetchJob))))


async def _outcome(job: FetchJob) -> FetchOutcome:
    try:
        return FetchOutcome(commit=await _noted(job))
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return FetchOutcome(error=str(error), errno=free_room.refused(error))
    except OSError as error:
        said = f"it cannot be fetched: {error}"
        return FetchOutcome(error=said, errno=free_room.refused(error))


async def _noted(job: FetchJob) -> str:
    """Return the commit that a job fetches, noted as in use before another process has the mirror.

    Raises as ``fetched`` does, and ``OSError``.
    """
    mirror = Mirror(Path(job.kept).parent)
    with contextlib.ExitStack() as held:
        while True:
            mirror.prepare(job.origin.source)
            with contextlib.suppress(FileNotFoundError):  # who prunes has just removed it
                held.enter_context(mirror.locked())
                break
        try:
            commit = await fetched(job)
        except (OSError, SandboxError):
            if job.origin.remote or os.path.lexists(job.origin.source):  # noqa: ASYNC240 (it does nothing else)
                raise
            raise WorkspaceError("it is gone") from None
        if job.pin is not None:
            commits = {**job.pin.commits, job.origin.ref: commit}
            mirror.pin(msgspec.structs.replace(job.pin, commits=commits))
    return commit


async def fetched(job: FetchJob) -> str:
    """Bring the mirror up to what a job asks for; return the commit, or for a copy the tree.

    Raises ``WorkspaceError``, ``SandboxError``, ``FolderError``.
    """
    if job.origin.kind == "copy":
        argv = git.script(_COPY, _source(job), git.ATTRIBUTES)
        ran = await _inside(job, argv, "it cannot be copied")
        return ran.output.split()[-1]
    if job.fetch and job.origin.remote:
        await _fetched_from_afar(job)
    elif job.fetch:
        await asyncio.to_thread(_see, job.origin.source)
        argv = git.script(_FETCH, _source(job), job.origin.source, git.ATTRIBUTES)
        await _inside(job, argv, "it cannot be cloned")
    ran = await _inside(job, git.script(_RESOLVE, job.origin.ref), "its commit cannot be found")
    first, *names = ran.output.split() or ("none",)
    if not _HASH.fullmatch(first):
        wanted = f"the ref {job.origin.ref}" if job.origin.ref else "a commit"
        there = f"there are {', '.join(names)}" if names else "it is empty"
        raise WorkspaceError(f"it has no branch, tag or commit for {wanted}: {there}")
    return first


def _source(job: FetchJob) -> str:
    """Return where scripts find what is fetched."""
    return "/base" if job.policy.backend == "bwrap" else job.origin.source


async def _inside(job: FetchJob, argv: list[str], what: str) -> CommandEnd:
    """Run a script in the mirror's folder, in the sandbox.

    Raises ``WorkspaceError`` where it fails, ``FolderError``.
    """
    remote = job.origin.remote
    policy = replace(
        job.policy,
        network=False,
        max_disk_bytes=job.max_bytes,
        max_file_bytes=job.max_bytes,
        tmp_bytes=job.max_bytes,  # where it is memory, it is no disk that is full
        sets_ids=job.origin.kind == "copy",  # as `cp` finds them
    )
    async with await Sandbox(policy).open(
        job.kept,
        fresh=True,
        network=False,
        env={},
        base="" if remote else job.origin.source,
        held=0,  # all that lies there counts
    ) as place:
        ran = await place.run(argv, timeout_s=job.timeout_s)
        git.insist(ran, what + _too_large(ran.output, job))
        if full := await place.full():
            raise WorkspaceError(f"{what}: {full.replace(*_LIMIT)}")
    return ran


async def _fetched_from_afar(job: FetchJob) -> None:
    await asyncio.to_thread(Path(job.kept).mkdir, mode=0o755, exist_ok=True)
    keys = {"credential.helper": _helper(job.credentials)} if job.credentials else {}
    process = await asyncio.create_subprocess_exec(
        *_together(job.policy),
        *git.bare(_FETCH, job.origin.source, job.origin.source, git.ATTRIBUTES),
        cwd=job.kept,
        env={
            **os.environ,
            **git.variables(keys),
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
            # What is left of one that is killed goes with the mirror.
            "TMPDIR": os.path.dirname(job.kept),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (job.max_bytes,) * 2),
    )
    try:
        async with asyncio.timeout(job.timeout_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise WorkspaceError(f"it cannot be cloned within {job.timeout_s:,.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        words = said.decode(errors="replace")
        raise git.failure(f"it cannot be cloned{_too_large(words, job)}", words, process.returncode)


def _together(policy: SandboxPolicy) -> list[str]:
    """Return what runs a program with all that it starts in a namespace of processes:
    they end with it, and it with us.

    It is no sandbox: git and ssh see what batchd's user does.
    Without bubblewrap, who kills batchd leaves them behind.
    """
    if policy.backend != "bwrap":
        return []
    mounts = ("--dev-bind", "/", "/", "--proc", "/proc")
    return [ready(policy), *mounts, "--unshare-pid", "--die-with-parent", "--"]


def _helper(file: str) -> str:
    """Return the helper that gives git users and passwords,
    and forgets none where a server refuses one.
    """
    return f'!f() {{ [ "$1" != get ] || git credential-store --file={shlex.quote(file)} get; }}; f'


def _too_large(said: str, job: FetchJob) -> str:
    """Return what stands behind git's words where a pack could not be written to its end."""
    if "index-pack" not in said or free_room.refused(said):
        return ""
    return f" (it may be larger than {_LIMIT[1]}, {job.max_bytes:,})"


def _see(source: str) -> None:
    """Raise ``WorkspaceError`` for a repository that no command may read,
    or that borrows its objects from elsewhere.
    """
    found = Path(source).stat()
    if as_root() and found.st_uid == 0 and found.st_mode & 0o005 != 0o005:  # to read and to enter
        raise WorkspaceError("it is root's, for root alone, and commands never run as root")
    for inside in (f"{source}/.git", source):
        if os.path.lexists(f"{inside}/objects/info/alternates"):
            raise WorkspaceError(
                f"it borrows objects of another repository ({inside}/objects/info/alternates): "
                "`git repack -a -d` there, and remove that file"
            )
