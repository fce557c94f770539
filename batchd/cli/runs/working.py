"""What ``batchd run`` does with its files: looks them through,
has them worked on, follows, and ends with the summaries.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from batchd import config, words
from batchd.cli.display import formatting
from batchd.cli.runs import (
    admission,
    batch_ends,
    errand,
    following,
    given_files,
    leftovers,
    private_run,
    trial,
)
from batchd.cli.runs.standby import Standby
from batchd.config import own
from batchd.errors import NoDaemonError, NotPossibleError, UsageError
from batchd.records import Task
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow


def work(args: argparse.Namespace, settings: config.Config, standby: Standby | None) -> int:
    """Work on all files by a daemon; return the exit code. ``standby``: a daemon that loads
    already.
    """
    files = [(name, given_files.read_file(name, settings)) for name in args.files]
    if args.first is not None:
        files = [(name, trial.cut(name, data, args.first, settings)) for name, data in files]
    files = [(Path(name).name, data) for name, data in files]
    # Every error now, before anything is paid, or made.
    found = [given_files.parsed(data, name, settings) for name, data in files]
    tasks = [task for parsed in found for task in parsed.tasks]
    if args.private:
        if any(parsed.after_batches for parsed in found):
            raise UsageError(
                "--private knows no other batches: leave out --private or `after_batches`"
            )
        _refuse(settings, tasks)
        return private_run.run(
            settings, files, serial=args.serial, processes=args.processes, as_json=args.json
        )
    signal.signal(signal.SIGTERM, following.terminated)
    return _have_done(args, settings, files, tasks, standby)


def _have_done(
    args: argparse.Namespace,
    settings: config.Config,
    files: Sequence[tuple[str, bytes]],
    tasks: Sequence[Task],
    standby: Standby | None,
) -> int:
    daemon = errand.running(settings, processes=args.processes)
    if daemon is not None and standby is not None:
        standby.dismiss()  # another one came up meanwhile
    if daemon is None and (over := leftovers.over(settings, files)):
        return batch_ends.report(_rows(settings, [batch.name for batch in over]), as_json=args.json)
    if daemon is None:
        _refuse(settings, tasks)
        admission.refuse_paused(settings, {task.model for task in tasks})
        if sys.stderr.isatty() and not args.json:
            print(
                "No daemon runs here: one starts for this run, with its workers …", file=sys.stderr
            )
        daemon = errand.start(settings, processes=args.processes, standby=standby)
    with daemon:
        names = [
            daemon.ended(name, data) or daemon.hand_over(name, data, serial=args.serial)
            for name, data in files
        ]
        end = following.follow(settings, daemon, names, quiet=args.json)
    rows = _rows(settings, names)
    if end != "done":
        finished = sum(row.finished for row in rows)
        whole = words.counted(sum(row.tasks for row in rows), "task")
        said = f"{finished:,} of {whole} done"
        if end == "left":
            print(f"{said}. batchd status {' '.join(names)}", file=sys.stderr)
            return 130
        raise NoDaemonError(
            f"{said}: its daemon has ended. `batchd run` of the same file goes on with it, and "
            "so does `batchd serve`"
        )
    daemon.forget(row.batch for row in rows)
    code = batch_ends.report(rows, as_json=args.json)
    sys.stdout.flush()
    daemon.leave()
    return code


def _rows(settings: config.Config, names: Sequence[str]) -> list[BatchRow]:
    """Return how batches stand."""
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:
        return [reader.batch(name) for name in names]


def _refuse(settings: config.Config, tasks: Sequence[Task]) -> None:
    """Refuse what every task would end with: no key, no outbox. Raises ``NotPossibleError``."""
    from batchd import visible  # loads the sandbox; a running daemon has looked

    visible.refuse(settings)
    models = {task.model for task in tasks}
    if settings.evaluation.judge_model and any(task.evaluator == "judge" for task in tasks):
        models.add(settings.evaluation.judge_model)
    for provider in sorted({model.partition("/")[0] for model in models}):
        settings.endpoint(provider)
    own.prepare(settings.paths, settings.environ)
    outbox = Path(settings.paths.outbox)
    try:
        outbox.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=outbox):
            pass
    except OSError as error:
        fix = "give it to this user, or name another one in [paths] outbox"
        said = f"the outbox {outbox} cannot be written: {error.strerror}; {fix}"
        raise NotPossibleError(said) from None
    Path(settings.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)
