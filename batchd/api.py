"""The Python face: ``batchd.submit("task.json").wait()`` returns results as objects.

It does what `batchd submit`, `wait`, `status` and `cancel` do, in whichever process and as
whichever user, and raises the errors that they print.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from batchd import control, decoders, silent_paths
from batchd.cli import submit as dropping
from batchd.cli.display.progress import ProgressSource, ProgressWatch, follow
from batchd.cli.runs import given_files, prompts
from batchd.config import Config, load
from batchd.errors import (
    BatchdError as BatchdError,
    NoDaemonError as NoDaemonError,
    NotPossibleError,
    TaskFileError as TaskFileError,
    UnknownNameError,
    UsageError,
)
from batchd.formats import ResultV1
from batchd.log import escape
from batchd.spool import inbox, outbox, taskfile
from batchd.store.rows import BatchRow


def submit(
    file: str | Path | Mapping[str, Any] | None = None,
    *,
    prompt: str | None = None,
    name: str | None = None,
    config: str | Path | None = None,
    spool: str | Path | None = None,
    **options: Any,
) -> Batch:
    """Drop a task file into the inbox: one that lies there, what a dict says, or a prompt's.

    ``options`` go with ``prompt``: ``model``, ``check``, ``dir``, ``repo``, ``budget`` and
    ``each``, as to `batchd submit`. Raises ``BatchdError``; then nothing is dropped.
    """
    settings = _settings(config, spool)
    options = {key: value for key, value in options.items() if value is not None}
    for key, value in {"prompt": prompt, "name": name, **options}.items():
        if not isinstance(value, float | int if key == "budget" else str | os.PathLike | None):
            raise UsageError(f"{key}={value!r} is no {'number' if key == 'budget' else 'text'}")
    if (file is None) == (prompt is None):
        raise UsageError("give a file or a prompt: one of the two")
    if unknown := options.keys() - set(prompts.OPTIONS if file is None else ()):
        raise UsageError(
            f"{', '.join(sorted(unknown))}: only {', '.join(prompts.OPTIONS)} go with a prompt, "
            "none of them with a file, where they are keys"
        )
    if file is None:
        filename, data = prompts.task_file(prompt or "", options)
    elif isinstance(file, Mapping):
        filename, data = "task.json", json.dumps(file).encode()
    else:
        filename, data = Path(file).name, given_files.read_file(str(file), settings)
    filename = inbox.file_name(f"{name}{Path(filename).suffix}" if name else filename)
    taskfile.parse(data, filename, settings)
    alive = dropping.alive(settings)
    dropping.refuse_spoolless(settings, alive=alive)
    _, mine = dropping.drop(settings, filename, data, alive=alive)
    return Batch(settings, mine.find)


def batch(name: str, *, config: str | Path | None = None, spool: str | Path | None = None) -> Batch:
    """Return a batch that was dropped before. Raises ``BatchdError``, where there is none."""
    if not isinstance(name, str):
        raise UsageError(f"a batch's name is text, not {name!r}")
    found = Batch(_settings(config, spool), lambda books: [books.batch(name)])
    if not found.name:
        raise UnknownNameError(f"there is no batch {escape(name)}: nothing has run here yet")
    return found


def _settings(file: str | Path | None, spool: str | Path | None) -> Config:
    """Return the configuration that is named, or the one that the commands find here."""
    if file is not None and spool is not None:
        raise UsageError("give config= or spool=: one of the two")
    named = file if spool is None else Path(spool, "config.toml")
    settings = load(None if named is None else Path(named).expanduser().absolute())
    silent_paths.refuse(settings.paths.state, settings.paths.inbox)
    return settings


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch in a spool; a daemon works on it."""

    _settings: Config
    _find: Callable[[ProgressSource], list[BatchRow]]

    def __repr__(self) -> str:
        return f"<batchd.Batch {self.name or 'not taken up yet'}: {self.status}>"

    @property
    def name(self) -> str:
        """The batch's name; empty as long as no daemon has taken it up."""
        row = self._row()
        return row.batch.name if row else ""

    @property
    def status(self) -> str:
        """How it stands, in the words of ``batchd status --json``."""
        row = self._row()
        return row.status if row else "queued"

    @property
    def results(self) -> Sequence[ResultV1]:
        """The results, in the order of the tasks; before the batch's end, those that are there, as
        far as this user may see them.

        Raises ``TaskFileError`` where the daemon has refused the file, and ``NotPossibleError``
        where somebody has taken the results away.
        """
        if not (row := self._row()):
            return []
        if row.problems:
            raise TaskFileError(row.problems, row.batch.name)
        folder = Path(row.batch.folder)
        if row.published_at is None:
            with dropping.books(self._settings) as books:
                ended = [task.ref.task for task in books.tasks(row.batch.name) if task.status.final]
            there = filter(None, (outbox.result(folder, task) for task in ended))
            return [decoders.convert(found, ResultV1) for found in there]
        try:
            with (folder / "results.jsonl").open("rb") as lines:
                return [decoders.decode(line, ResultV1) for line in lines]
        except FileNotFoundError:
            raise NotPossibleError(
                f"{folder}/results.jsonl is not there: somebody has collected the results"
            ) from None

    def wait(self, timeout: float | None = None) -> Sequence[ResultV1]:
        """Wait until the batch has ended, and return its results.

        Raises ``TimeoutError`` after so many seconds, and ``NoDaemonError`` where no daemon works.
        """
        begun, alive = time.monotonic(), partial(dropping.works, self._settings)

        def find(books: ProgressSource) -> list[BatchRow]:
            if timeout is not None and time.monotonic() - begun > timeout:
                raise TimeoutError(f"the batch has not ended within {timeout:g} s; it goes on")
            return self._find(books)

        row = self._row()
        if row is None or row.published_at is None:
            if not alive():
                state = self._settings.paths.state
                raise NoDaemonError(f"no daemon runs on {state}: start `batchd serve`")
            with dropping.books(self._settings) as books:
                follow(ProgressWatch(books, find), alive, quiet=True)
        return self.results

    def cancel(self, message: str = "") -> None:
        """End the batch; each task keeps a result that says so. Raises ``BatchdError``, without a
        daemon ``NoDaemonError``.
        """
        if not (name := self.name):
            raise NotPossibleError("the file is not taken up yet: cancel it once it has a name")
        state = Path(self._settings.paths.state)
        control.give(state, control.Cancel(target=(name,), message=message))

    def _row(self) -> BatchRow | None:
        """Return the batch as it stands; None as long as it is not taken up."""
        if not dropping.has_books(self._settings):
            return None
        with dropping.books(self._settings) as books:
            return next(iter(self._find(books)), None)
