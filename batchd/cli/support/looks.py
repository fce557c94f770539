"""What ``batchd check`` looks at: all that a configuration names,
with the rights of the process that looks.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from batchd import config, sandbox, telemetry
from batchd.cli.support import folder_looks
from batchd.cli.support import model_checks as offered
from batchd.config import operator_files
from batchd.control import CheckLine, LineVerdict
from batchd.errors import BatchdError
from batchd.masking import Masker
from batchd.notify import channels
from batchd.spool import permissions

#: How long something may take to answer the simplest request.
_PATIENCE_S = 10.0


def lines(
    settings: config.Config, *, offline: bool, models: Iterable[str] = ()
) -> Iterator[CheckLine]:
    """Yield a line for each thing; ``models``: those in use beside the configuration's own.

    Blocks, but for no folder that hangs: then that alone is said.
    """
    silent = [*folder_looks.silent(settings)]
    if silent:
        yield from silent
        said = "all else is looked at once they answer, for it may need them"
        yield CheckLine("note", "check", said)
        return
    yield from folder_looks.lines(settings)
    yield from _repositories(settings)
    yield from _log_file(settings)
    yield from _exposed(settings)
    yield from _visible(settings)
    yield from _sandbox(settings)
    yield from offered.lines(settings, offline=offline, tasks=models)
    yield from _metrics(settings)
    yield from _traces(settings, offline=offline)
    yield from _receivers(settings)


def _repositories(settings: config.Config) -> Iterator[CheckLine]:
    """Yield what tasks with a ``repo`` need, where the configuration names any."""
    workspace = settings.workspace
    if workspace.repos and shutil.which("git") is None:
        yield CheckLine("failed", "repositories", "git is not installed", "apt-get install git")
    if not workspace.credentials:
        return
    if os.access(workspace.credentials, os.R_OK):
        yield CheckLine("ok", "repositories", f"credentials in {workspace.credentials}")
    else:
        fix = "make it, for batchd's user alone, or set [workspace] credentials"
        yield CheckLine("failed", "repositories", f"{workspace.credentials} cannot be read", fix)


def _log_file(settings: config.Config) -> Iterator[CheckLine]:
    if not settings.log.file:
        return
    # It is not made here: the user who checks may be another than the daemon's.
    path = Path(settings.log.file).resolve()
    place = path if path.exists() else path.parent
    if path.is_dir() or not os.access(place, os.W_OK):
        fix = "make its folder, which this user may write, or set [log] file"
        yield CheckLine("failed", "log", f"{settings.log.file} cannot be written", fix)
    else:
        yield CheckLine("ok", "log", settings.log.file)


def _exposed(settings: config.Config) -> Iterator[CheckLine]:
    for found in permissions.exposures(settings):
        verdict: LineVerdict = "failed" if found.grave else "note"
        yield CheckLine(verdict, "permissions", f"{found.path}: {found.why}", found.fix)


def _visible(settings: config.Config) -> Iterator[CheckLine]:
    """Say what commands would see of batchd's own, and what they had better not see."""
    policy = settings.sandbox_policy()
    own, others = operator_files.kept(settings, settings.file), operator_files.exposed(settings)
    try:
        for found in sandbox.seen(policy, own):
            yield CheckLine("failed", "sandbox view", f"{found.place}: {found.message}", found.hint)
        for found in sandbox.seen(policy, others, around=False):
            yield CheckLine("note", "sandbox view", f"{found.place}: {found.message}", found.hint)
    except ValueError:
        return  # the sandbox itself says it


def _sandbox(settings: config.Config) -> Iterator[CheckLine]:
    for found in sandbox.check(settings.sandbox_policy()):
        verdict: LineVerdict = "ok" if found.ok else "failed"
        if found.ok and found.name == "sandbox" and settings.sandbox.backend == "none":
            verdict = "note"
        yield CheckLine(verdict, found.name, found.detail, found.fix)


def _metrics(settings: config.Config) -> Iterator[CheckLine]:
    wanted = settings.metrics
    if wanted.listen:
        if why := telemetry.missing(settings).get("metrics"):
            yield _missing("metrics", why)
        yield _listening(wanted.listen, wanted.address)


def _missing(what: str, why: str) -> CheckLine:
    said, _, fix = why.partition(": ")
    return CheckLine("failed", what, said, fix)


def _listening(listen: str, address: tuple[str, int]) -> CheckLine:
    """Say whether the port is free, or has a batchd behind it."""
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        socket.create_server(address, family=family).close()
    except OSError as error:
        why = error.strerror
    else:
        return CheckLine("ok", "metrics", f"{listen} is free")
    connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/metrics")
        if b"batchd_build_info" in connection.getresponse().read():
            return CheckLine("ok", "metrics", f"a daemon answers at {listen}")
        why = "another process listens there"
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    fix = "end that, or set another [metrics] listen"
    return CheckLine("failed", "metrics", f"they cannot be fetched at {listen}: {why}", fix)


def _traces(settings: config.Config, *, offline: bool) -> Iterator[CheckLine]:
    wanted = settings.traces
    if not wanted.endpoint:
        return
    if why := telemetry.missing(settings).get("traces"):
        yield _missing("traces", why)
    try:
        headers = wanted.all_headers(settings.environ)
    except BatchdError as error:
        yield CheckLine("failed", "traces", str(error))
        return
    if offline:
        yield CheckLine("ok", "traces", f"sent to {wanted.endpoint}; not asked")
        return
    headers = {**headers, "Content-Type": "application/x-protobuf", "User-Agent": "batchd"}
    request = urllib.request.Request(wanted.address, b"", headers)  # noqa: S310 (the configuration's check of its scheme)
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=_PATIENCE_S):
            yield CheckLine("ok", "traces", f"{wanted.endpoint} takes them")
    except urllib.error.HTTPError as error:
        error.close()
        fix = "check the address and the headers in [traces]"
        yield CheckLine(
            "failed", "traces", f"{wanted.endpoint} answers with HTTP {error.code}", fix
        )
    except (OSError, ValueError) as error:
        why = Masker(wanted.hidden(settings.environ)).text(str(getattr(error, "reason", error)))
        fix = "start it, or check the network and [traces] endpoint"
        yield CheckLine("failed", "traces", f"{wanted.endpoint} cannot be reached: {why}", fix)


def _receivers(settings: config.Config) -> Iterator[CheckLine]:
    for target in channels.targets(settings):
        what = f"notify {target.name}"
        found = list(channels.problems(target))
        yield from (CheckLine("failed", what, why, fix) for why, fix in found)
        if not found:
            said = (
                f"{target.settings.kind}, notified of: {', '.join(target.settings.on)}; not tried"
            )
            yield CheckLine("ok", what, said, f"batchd notify --test {target.name} tries it")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along to wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None
