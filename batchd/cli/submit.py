"""``batchd submit``: checks a task file, then drops it whole into the inbox."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from batchd import config, control, silent_paths, users, words
from batchd.cli.display import formatting, progress, summary_text
from batchd.cli.display.progress import ProgressSource
from batchd.cli.member_reader import MemberReader
from batchd.cli.runs import given_files, prompts
from batchd.errors import BatchdError, NoDaemonError, NotPossibleError, UsageError
from batchd.log import escape
from batchd.observe import standstill
from batchd.observe.status import Unseen, ask
from batchd.spool import inbox, outbox
from batchd.spool.decoding import ENDINGS
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: Batches among which one is looked for.
_LATEST = 1000


class DroppedBatch:
    """Finds the batch that a dropped file became: another program may drop one of the same name."""

    def __init__(self, newest: str, filename: str, data: bytes) -> None:
        """``newest``: the newest batch before the drop; ``filename``: as it was dropped."""
        self._newest = newest
        self._base = outbox.batch_name(filename)
        self._data = data
        #: The batch's, once it is known.
        self.name = ""

    def find(self, reader: ProgressSource) -> list[BatchRow]:
        """Return the batch, alone; nothing as long as it has not been claimed."""
        if not self.name:
            for row in reader.batches(limit=_LATEST):
                if row.batch.name == self._newest:
                    break
                if self._is_mine(row):
                    self.name = row.batch.name
        return [reader.batch(self.name)] if self.name else []

    def _is_mine(self, row: BatchRow) -> bool:
        batch = row.batch
        if not re.fullmatch(rf"{re.escape(self._base)}(-\d+)?", batch.name):
            return False
        try:
            return Path(batch.folder, batch.request).read_bytes() == self._data
        except OSError:
            # Not moved yet; or a collector was faster than this look, and its name has to do.
            return row.published_at is not None


#: How long a daemon may take to say that it is there:
#: who drops a file need not wait for one that stands still.
_ANSWER_S = 10.0
#: How long who only drops a file waits for the name of its batch, and between two looks.
_SOON_S, _LOOK_S = 1.0, 0.05
#: … and who follows it, before that is news.
_LATE_S = 5.0
#: Said where the daemon has a file by then, and no batch of it.
_LATE = "The file is not taken up yet; what is in the daemon's way stands in: batchd status"
#: Said where no daemon shows that takes it.
_UNWATCHED = "No daemon that watches the inbox answers; the file waits until `batchd serve` starts."
#: Said where no configuration names a spool;
#: that of the user's own is one while a daemon is at work on it.
_SPOOLLESS = (
    "there is no spool here, and nothing was dropped: no configuration is found\n"
    "  batchd init DIR      makes a spool, and says what comes next\n"
    "  batchd run FILE      works on a file here and now, without one"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a task file; -: standard input")
    prompts.options(parser)
    parser.add_argument("--first", type=int, metavar="N", help="a trial: the first N tasks only")
    parser.add_argument("--name", help="the batch's name (default: the file's)")
    parser.add_argument("--wait", action="store_true", help="show progress, end with the summary")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Check, drop, and wait if asked to."""
    settings = config.load(args.config)
    silent_paths.refuse(settings.paths.state, settings.paths.inbox)
    there = alive(settings, heed=True)
    refuse_spoolless(settings, alive=there)
    filename, data = _given(args, settings)
    filename = inbox.file_name(filename)
    if args.first is not None:
        data = given_files.cut(filename, data, args.first, settings)
    tasks = given_files.parsed(data, filename, settings).tasks
    if args.wait and not there:
        raise NoDaemonError(
            f"no daemon runs on {settings.paths.state}, so nothing was dropped: start `batchd "
            "serve`, or drop it without --wait"
        )
    path, mine = drop(settings, filename, data, alive=there, sure=args.wait)
    if args.wait:
        return _wait(settings, mine, as_json=args.json)
    found = _soon(settings, mine) if there else None
    refused = found is not None and bool(found.problems)
    if args.json:
        taken: dict[str, Any] = {} if found is None else {"batch": found.batch.name}
        if found is not None and refused:
            taken |= {"problems": [str(problem) for problem in found.problems]}
        formatting.print_json({"file": str(path), "tasks": len(tasks), "daemon": there, **taken})
    else:
        print(escape(f"{path}: {words.counted(len(tasks), 'task')}"))
        _say_when(found, alive=there)
    return UsageError.exit_code if refused else 0


def _say_when(found: BatchRow | None, *, alive: bool) -> None:
    """Say under which name a file is taken up, why it is refused, or what it waits for."""
    if found is None:
        formatting.complain(_LATE if alive else _UNWATCHED)
    elif found.problems:
        for line in (f"Refused, as {found.batch.name}:", *map(str, found.problems)):
            formatting.complain(line)
    else:
        name = found.batch.name
        print(f"Taken up as {name}: batchd status {name}")


def refuse_spoolless(settings: config.Config, *, alive: bool) -> None:
    """Refuse to drop where nobody has made a spool. Raises ``NotPossibleError``."""
    if not alive and not settings.file and settings.paths.is_own(settings.environ):
        raise NotPossibleError(_SPOOLLESS)


def drop(
    settings: config.Config, filename: str, data: bytes, *, alive: bool, sure: bool = False
) -> tuple[Path, DroppedBatch]:
    """Drop a file, and return its path and what finds its batch; ``sure``: nothing is dropped where
    nothing can say how that does.
    """
    if not alive:
        from batchd.spool import safety  # loads the sandbox; a running daemon has looked

        safety.refuse_seen(settings)
    newest: list[BatchRow] = []
    try:
        if has_books(settings):
            with books(settings) as found:
                newest = found.batches(limit=1)
    except BatchdError:
        if sure:
            raise
    path = inbox.drop(Path(settings.paths.inbox), filename, data)
    return path, DroppedBatch(newest[0].batch.name if newest else "", path.name, data)


def _soon(
    settings: config.Config, mine: DroppedBatch, within_s: float = _SOON_S
) -> BatchRow | None:
    """Return the batch that a file becomes; None: that takes longer than somebody waits."""
    deadline = time.monotonic() + within_s
    # Where nothing was ever taken up there is no store yet; what is wrong with one, `status` says.
    with contextlib.suppress(BatchdError), books(settings) as found:
        while time.monotonic() < deadline:
            if rows := mine.find(found):
                return rows[0]
            time.sleep(_LOOK_S)
    return None


def _given(args: argparse.Namespace, settings: config.Config) -> tuple[str, bytes]:
    """Return the name and the bytes to drop."""
    given = prompts.prompted(args)
    if (args.file is None) == (given is None):
        raise UsageError("name a FILE or give a --prompt: one of the two")
    name, data = given or given_files.named(args.file, settings)
    if args.file == "-" and args.name and Path(args.name).suffix.lower() in ENDINGS:
        return args.name, data
    return f"{args.name}{Path(name).suffix}" if args.name else name, data


def _member(settings: config.Config) -> MemberReader | None:
    """Return what says how things stand to another user than the daemon's; None: it is that one."""
    state = Path(settings.paths.state)
    return MemberReader(Path(settings.paths.outbox), state) if users.barred(state) else None


def alive(settings: config.Config, *, heed: bool = False) -> bool:
    """Return whether a daemon takes what is dropped;
    ``heed``: say where it is of another version.
    """
    if member := _member(settings):
        return member.alive()
    return takes(Path(settings.paths.state), heed=heed)


def works(settings: config.Config) -> bool:
    """Return whether a daemon works on the spool: one of a ``run`` does, and takes no files."""
    if member := _member(settings):
        return member.alive()
    return ask(Path(settings.paths.state)) is not Unseen.ABSENT


def takes(state: Path, *, heed: bool = False) -> bool:
    """Return whether a daemon answers that takes what is dropped."""
    try:
        answer = control.ask(state, control.AskStatus(), timeout_s=_ANSWER_S)
    except NoDaemonError:
        return False
    if heed:
        formatting.complain(standstill.differs(answer.version))
    return answer.watching  # one that works for a `run` takes no files


def has_books(settings: config.Config) -> bool:
    """Return whether anything says how batches do: not before the first one was taken up."""
    store = formatting.store_path(Path(settings.paths.state))
    return _member(settings) is not None or store.exists()


@contextlib.contextmanager
def books(settings: config.Config) -> Iterator[ProgressSource]:
    """Give what says how batches do: the store, or the outbox, to who may not read that."""
    if member := _member(settings):
        yield member
        return
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:
        yield reader


def _wait(settings: config.Config, mine: DroppedBatch, *, as_json: bool) -> int:
    if not as_json and _soon(settings, mine, _LATE_S) is None:
        formatting.complain(_LATE)
    with books(settings) as reader:
        try:
            watch = progress.ProgressWatch(reader, mine.find)
            progress.follow(watch, partial(alive, settings), quiet=as_json)
        except KeyboardInterrupt:
            print(f"It goes on without this: batchd status {mine.name}", file=sys.stderr)
            raise
        (row,) = mine.find(reader)
    return summary_text.report([row], as_json=as_json)
