"""``batchd check``: what would fail here, and the fix, before a task finds out.

A running daemon is asked what it sees: it has its own rights,
keys and configuration, and who checks may have none of them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from batchd import config, control, silent_paths, users
from batchd.cli import orders
from batchd.cli.display import formatting
from batchd.cli.display.formatting import coloured
from batchd.cli.support import looks
from batchd.config import trust
from batchd.console import wrapped
from batchd.control import Check, Checked, CheckLine
from batchd.errors import NoAnswerError, NoDaemonError
from batchd.log import escape
from batchd.observe import standstill
from batchd.words import listed

#: Columns of a verdict, and the space behind it.
_MARGIN = 7
#: What the daemon gets to look at everything: each provider may take ten seconds (seconds).
_PATIENCE_S = 300.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "It costs nothing: providers are asked for their lists of models, and for no answer."
    )
    parser.add_argument("--offline", action="store_true", help="ask no provider")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Look at everything; 0 if nothing would fail, else 3."""
    settings = config.load(args.config)  # what is wrong with it ends the command, all at once
    lines = _lines(settings, Check(offline=args.offline))
    if args.json:
        formatting.print_json([control.fields(line) for line in lines])
    else:
        _show(lines)
    return 3 if any(line.verdict == "failed" for line in lines) else 0


def _show(lines: Iterable[CheckLine]) -> None:
    """Print lines for people, what they say beside their verdicts."""
    for line in lines:
        margin = coloured(f"{line.verdict:<6}", line.verdict)
        for text in (f"{line.what}: {line.detail}", f"→ {line.mend}" if line.mend else ""):
            for piece in wrapped(escape(text), formatting.room() - _MARGIN) if text else ():
                print(f"{margin} {piece}")
                margin = " " * (_MARGIN - 1)


def _config(settings: config.Config) -> CheckLine:
    """Say which file it is, or that there is none."""
    if settings.file:
        return CheckLine("ok", "config", settings.file)
    said = "none is found: the built-in defaults, and a spool of your own"
    return CheckLine(
        "note", "config", said, f"{trust.spool_command()} makes a spool with a configuration"
    )


def _lines(settings: config.Config, asked: Check) -> list[CheckLine]:
    """Return what a daemon sees, and what of that is otherwise from here;
    without one, what is seen from here.
    """
    state = Path(settings.paths.state)
    if silent_paths.among([settings.paths.state]):  # the way to a daemon leads through it
        return [_config(settings), *looks.lines(settings, offline=asked.offline)]
    if users.barred(state):
        raise users.forbidden("what `batchd check` looks at", state)
    try:
        answer = control.ask(state, asked, timeout_s=_PATIENCE_S, heed=orders.heed)
    except NoAnswerError as error:
        fix = "its log may say why; `batchd serve` goes on where one that is killed was"
        daemon = [CheckLine("failed", "daemon", str(error), fix)]
    except NoDaemonError as error:
        daemon = [
            *(CheckLine("failed", "store", refusal) for refusal in orders.refusals(state)),
            CheckLine(
                "note", "daemon", str(error), "`batchd serve` starts one; `batchd run` needs none"
            ),
        ]
    else:
        return [*_of_daemon(answer), *answer.lines, *_from_outside(settings, answer)]
    return [_config(settings), *daemon, *looks.lines(settings, offline=asked.offline)]


def _of_daemon(answer: Checked) -> Iterator[CheckLine]:
    """Say who the daemon is, and what configuration it has."""
    its, found = answer.settings, answer.process
    yield CheckLine("ok", "config", its.file or "none: the built-in defaults")
    if its.unread:
        said = f"it is wrong by now, and the daemon keeps what it has: {its.unread}"
        yield CheckLine("failed", "config", said, "correct it: the daemon's next start needs it")
    if its.stale:
        said = f"the file has {listed(its.stale)} otherwise than the daemon"
        yield CheckLine("note", "config", said, f"`kill -HUP {found.pid}` has it read again")
    if its.late:
        said = f"the file has {listed(its.late)} otherwise than the daemon"
        yield CheckLine("note", "config", said, "they are read at a start: start the daemon again")
    if its.overrides:
        changes = ", ".join(f"{key} = {value}" for key, value in its.overrides.items())
        fix = "`batchd tune --reset` takes that back, and so does the daemon's end"
        yield CheckLine("note", "config", f"`batchd tune` has changed {changes}", fix)
    who = f"{found.user or found.uid} (uid {found.uid})"
    said = (
        f"process {found.pid}, version {found.version}, as {who}, groups {', '.join(found.groups)}"
    )
    yield CheckLine("ok", "daemon", said)


def _from_outside(settings: config.Config, answer: Checked) -> Iterator[CheckLine]:
    """Say what is otherwise for who checks than for the daemon."""
    if differs := standstill.differs(answer.process.version):
        yield CheckLine("note", "version", "this program is another than the daemon's", differs)
    if settings.file != answer.settings.file:
        mine = settings.file or "no file"
        said = f"this command has read {mine}, the daemon {answer.settings.file or 'none'}"
        yield CheckLine("note", "config", said, "name the daemon's by --config")
    for name, place in dataclasses.asdict(settings.paths).items():
        if answer.settings.paths.get(name, place) != place:
            said = f"from here it is {place}, for the daemon {answer.settings.paths[name]}"
            yield CheckLine("note", name, said)
