"""``batchd serve``: the daemon."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from batchd import config, log, processes, words
from batchd.cli.display import formatting
from batchd.cli.runs.run_daemon import LOCKED
from batchd.control import CheckLine
from batchd.errors import BatchdError, SpoolLockedError
from batchd.pool import fork_server


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: all that it needs stands in the configuration."""
    # For a ``run`` that starts it as its child: see ``cli/runs/run_daemon.py``.
    parser.add_argument("--for-run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--drop-packs",
        action="store_true",
        help="drop what 0.2 left packed of directories on other machines: the first start alone",
    )
    parser.epilog = (
        "Without a configuration it serves a spool of your own, ~/.local/share/batchd. "
        "SIGTERM or Ctrl-C drains: tasks stop at a durable point and go on at the next start; "
        "a second one ends at once. SIGHUP reads the configuration again."
    )


def run(args: argparse.Namespace) -> int:
    """Watch the inbox until stopped."""
    # Until there is somebody to read the configuration again it waits, and does not end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    processes.seal()
    settings = formatting.settings(args.config)
    processes.forget(settings.variables())
    # It may outlive the directory that it is started in, and keeps no disk from being unmounted
    # there. The paths of its configuration are absolute; an error may name its program.
    sys.argv[0] = os.path.abspath(sys.argv[0])  # no link is followed
    os.chdir("/")
    fork_server.warm(Path(settings.paths.state, "pool"))
    try:
        if args.for_run:
            _serve_runs(settings)
        else:
            _serve(settings, drop_packs=args.drop_packs)
    except SpoolLockedError as error:
        fork_server.abandon()
        if args.for_run:
            return LOCKED
        fix = "see `batchd status`; wait until it ends, or end it with SIGTERM"
        raise SpoolLockedError(f"{error}: {fix}") from None
    except BatchdError:
        fork_server.abandon()
        raise
    if sys.stderr.isatty():
        print("Stopped; `batchd serve` goes on from here.", file=sys.stderr)
    return 0


def _serve(settings: config.Config, *, drop_packs: bool) -> None:
    """Be the daemon until it is stopped."""
    # They load everything; no other command needs it.
    with processes.undisturbed():
        from batchd import telemetry
        from batchd.daemon import Daemon, run as run_daemon
        from batchd.notify import channels
        from batchd.notify.notifications import Notifications
        from batchd.spool import safety
        from batchd.web.report_process import ReportMaker
    # The file that was found at the start: were it gone,
    # another one, or none, would lift its limits.
    file = Path(settings.file) if settings.file else None
    reload = functools.partial(config.load, file, settings.environ, here=Path(settings.base))
    safety.refuse_seen(settings)
    settings.paths.prepare(settings.environ)
    log.configure(settings.log.level, settings.log.format)
    channels.insist(settings)
    listeners = [Notifications(settings), *telemetry.exporters(settings)]
    daemon = Daemon(
        settings,
        drop_packs=drop_packs,
        reload=reload,
        look=_look,
        listeners=listeners,
        finishers=[ReportMaker()],
    )
    if sys.stderr.isatty():
        for line in _greeting(settings):
            formatting.complain(line)
    run_daemon(daemon.run())


def _serve_runs(settings: config.Config) -> None:
    """Be the daemon of those ``run`` that wait, until none does: on this machine alone, and nothing
    is parked for long.
    """
    with processes.undisturbed():
        from batchd.daemon import Daemon, run as run_daemon
        from batchd.web.report_process import ReportMaker
    # Errors, for progress shows the rest, unless who waits wants all.
    level: log.LogLevel = "debug" if settings.log.level == "debug" else "error"
    log.configure(level, settings.log.format)
    pool = replace(settings.pool, engine="local", processes=max(1, settings.pool.processes))
    governor = replace(settings.governor, max_parked_s=0.0)
    settings = replace(settings, pool=pool, governor=governor)
    daemon = Daemon(settings, watch=False, only_errands=True, finishers=[ReportMaker()])
    run_daemon(daemon.run())


def _greeting(settings: config.Config) -> Iterator[str]:
    """Yield what somebody at a terminal wants to know first."""
    paths, pool = settings.paths, settings.pool
    workers = pool.processes + sum(machine.processes for machine in pool.machines)
    agents = f"{words.counted(workers * pool.agents_per_process, 'task')} at a time"
    yield f"Drop task files into  {paths.inbox}"
    yield f"Results appear in     {paths.outbox}"
    yield f"Model                 {settings.agent.model}, {agents}"
    if pool.machines:
        yield f"Machines              {words.listed([each.called for each in pool.machines])}"
    try:
        settings.endpoint(settings.agent.model.partition("/")[0])
    except BatchdError as error:
        yield f"Its tasks will wait: {error}."
    yield "Ctrl-C stops: tasks go on at the next start. A second one ends at once."


def _look(
    settings: config.Config, *, offline: bool, models: Iterable[str] = ()
) -> Iterator[CheckLine]:
    """Look at everything for ``batchd check``;
    what that takes is loaded when it is first asked for.
    """
    from batchd.cli import check  # an idle daemon has no need of it

    return check.look(settings, offline=offline, models=models)
