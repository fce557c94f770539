"""``batchd run``: has task files, or a prompt, worked on here and now,
by the daemon that is there or by one for them alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, TypeAlias

from batchd import config, processes, silent_paths, words
from batchd.cli.display import formatting, progress, summary_text
from batchd.cli.runs import given_files, prompts
from batchd.cli.runs.run_daemon import RunDaemon, refuse_paused
from batchd.errors import NoDaemonError, UsageError
from batchd.records import Task
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: How it ends: the batches have, somebody left them, or their daemon ended under them.
End: TypeAlias = Literal["done", "left", "gone"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="task files; -: standard input, as JSON, JSONL or a prompt",
    )
    prompts.options(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--serial",
        action="store_true",
        help="one task at a time; where a daemon runs, one of each file",
    )
    mode.add_argument(
        "--processes", type=int, metavar="N", help="worker processes, where no daemon runs"
    )
    parser.add_argument("--first", type=int, metavar="N", help="a trial: the first N tasks only")
    parser.add_argument(
        "--json", action="store_true", help="print the summaries as JSON, without progress"
    )
    parser.epilog = (
        "If a daemon runs on the spool, it does the work. Otherwise run starts one that works "
        "on these files alone. A single task's answer comes last; where standard output is no "
        "terminal it stands there alone, and all else is on standard error. Ctrl-C asks whether to "
        "cancel what is left, or to leave it running. If a run is killed, the next `batchd run` of "
        "the same file goes on with it."
    )


def run(args: argparse.Namespace) -> int:
    """Have it worked on, show progress, end with the summaries, or a single task's answer."""
    processes.seal()
    settings = config.load(args.config)
    silent_paths.refuse(settings.paths.state)
    processes.forget(settings.variables())
    if args.processes is not None and args.processes < 1:
        raise UsageError(f"--processes needs a number, 1 or more, not {args.processes}")
    files = [*_given(args, settings)]
    if args.first is not None:
        files = [(p, n, given_files.cut(n, d, args.first, settings)) for p, n, d in files]
    # Every error now, before anything is paid, or made.
    tasks = [
        task for _, name, data in files for task in given_files.parsed(data, name, settings).tasks
    ]
    signal.signal(signal.SIGTERM, _terminated)
    with RunDaemon(settings, args.config, args.processes) as daemon:
        if not daemon.reached():
            _refuse(settings, tasks)
            if sys.stderr.isatty() and not args.json:
                said = "No daemon runs here: one starts for this run, with its workers …"
                print(said, file=sys.stderr)
            daemon.start()
        names = []
        for path, name, data in files:
            mark = hashlib.sha256(b"%b\0%b" % (os.fsencode(path), data)).hexdigest() if path else ""
            batch, again = daemon.hand_over(name, data, mark, serial=args.serial)
            names.append(batch)
            if again:
                formatting.complain(f"{name}: going on with {batch}, which an earlier run began.")
        # What becomes of a single task goes into a file or a pipe alone.
        apart = len(tasks) == 1 and not args.json and not sys.stdout.isatty()
        with contextlib.redirect_stdout(sys.stderr) if apart else contextlib.nullcontext():
            end = _follow(settings, daemon, names, quiet=args.json)
            with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:
                rows = [reader.batch(name) for name in names]
            done = end == "done"
            code = summary_text.report(rows, as_json=args.json, answers=not apart) if done else 0
        if done:
            if apart and (answer := summary_text.answer(rows[0])):
                print(answer)
            sys.stdout.flush()
            daemon.leave()
            return code
    so_far = f"{sum(row.finished for row in rows):,} of {words.counted(sum(row.tasks for row in rows), 'task')} done"
    if end == "left":
        print(f"{so_far}. batchd status {' '.join(names)}", file=sys.stderr)
        return 130
    raise NoDaemonError(
        f"{so_far}: its daemon has ended. `batchd run` of the same file goes on with it, and so does "
        "`batchd serve`"
    )


def _given(args: argparse.Namespace, settings: config.Config) -> Sequence[tuple[str, str, bytes]]:
    """Return the path, the name and the bytes of each file; what has no path is never gone on
    with.
    """
    if prompt := prompts.prompted(args):
        if args.files:
            raise UsageError("name a FILE or give a --prompt, not both")
        return [("", *prompt)]
    if not args.files:
        if not sys.stdin.isatty():
            return [("", *prompts.piped())]
        raise UsageError("name a task file, or say what is to be done: --prompt TEXT")
    return [
        ("" if file == "-" else os.path.realpath(file), *given_files.named(file, settings))
        for file in args.files
    ]


def _refuse(settings: config.Config, tasks: Sequence[Task]) -> None:
    """Refuse what every task would wait for: a key, or people; and a spool that commands would
    see, before anything is made there. Raises ``NotPossibleError``.
    """
    from batchd.spool import safety  # loads the sandbox; a running daemon has looked

    safety.refuse_seen(settings)
    models = {task.model for task in tasks}
    if settings.evaluation.judge_model and any(task.evaluator == "judge" for task in tasks):
        models.add(settings.evaluation.judge_model)
    for provider in sorted({model.partition("/")[0] for model in models}):
        settings.endpoint(provider)
    refuse_paused(settings, {task.model for task in tasks})
    settings.paths.prepare(settings.environ)


# Following the batches to their end, and asking what becomes of them at Ctrl-C


class Terminated(KeyboardInterrupt):
    """SIGTERM. Who stops a program by its number is not there to answer a question."""


def _follow(
    settings: config.Config, daemon: RunDaemon, names: Sequence[str], *, quiet: bool
) -> End:
    """Show how batches go until they have ended, or no one is left to wait for."""
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:

        def find(books: progress.ProgressSource) -> list[BatchRow]:
            return [books.batch(name) for name in names]

        def left() -> list[str]:
            return [row.batch.name for row in find(reader) if row.published_at is None]

        watch = progress.ProgressWatch(reader, find)
        while True:
            try:
                progress.follow(watch, daemon.alive, quiet=quiet, patience_s=0.0)
                return "done"
            except NoDaemonError:
                if left():
                    return "gone"
            except KeyboardInterrupt as stop:
                if not (waiting := left()):
                    continue
                asks = (
                    sys.stdin.isatty() and sys.stdout.isatty() and not isinstance(stop, Terminated)
                )
                answer = _answer(daemon, waiting) if asks else "c"
                if not _goes_on(daemon, waiting, answer):
                    return "left"


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Ctrl-C that nobody is asked about."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
    raise Terminated(number)


def _answer(daemon: RunDaemon, names: Sequence[str]) -> str:
    """Ask what is to become of what is left, and return the answer."""
    try:
        return input("\nCancel what is left (c), leave it running (l), or wait on (Enter)? ")
    except EOFError:
        return "l"
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            print()
            return "c"
        print(f"\n{daemon.without_us(names)}", file=sys.stderr)
        raise


def _goes_on(daemon: RunDaemon, names: Sequence[str], answer: str) -> bool:
    """Carry out what is to become of what is left; return whether it is still waited for."""
    # Meanwhile they may have ended, and their daemon with them: the next look shows that.
    with contextlib.suppress(NoDaemonError):
        match answer.strip().lower()[:1]:
            case "c":
                daemon.cancel(names)
                print("Stopping: what is left is cancelled.", file=sys.stderr)
            case "l":
                daemon.detach(names)
                print(
                    f"It goes on: batchd status {' '.join(names)}; batchd cancel ends it.",
                    file=sys.stderr,
                )
                return False
            case "":
                pass
            case _:
                print("That is not c, l or Enter: still waiting.", file=sys.stderr)
    return True
