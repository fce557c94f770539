"""The daemon that does the work of a ``run``: the one that is there,
or one that is started for it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from batchd import config, control
from batchd.cli.runs import admission, leftovers
from batchd.cli.runs.leftovers import Leftover, Leftovers
from batchd.cli.runs.standby import Standby, locked
from batchd.errors import (
    NoAnswerError,
    NoDaemonError,
    NotPossibleError,
    UsageError,
)
from batchd.records import Batch
from batchd.spool import claims

#: How long another one may take to come up, or to end.
_PATIENCE_S = 60.0
_LOOK_S = 0.05
#: How long it may take to end, once nothing is left to do.
_LEAVES_S = 10.0


#: What is said of a file of which an earlier ``run`` has left something.
_GOES_ON = "going on with what an earlier run of it left."


class DaemonConnection:
    """A daemon, and the connection that shows it that somebody waits.

    A context manager that closes it.
    """

    def __init__(
        self,
        settings: config.Config,
        connection: control.Connection,
        standing: control.DaemonStatus,
        *,
        started: Standby | None,
        processes: int | None = None,
    ) -> None:
        """``started``: it is the one that was started for this ``run``.

        ``processes``: those of another one that is started for it.
        """
        self._settings = settings
        self._state = Path(settings.paths.state)
        self._connection = connection
        self._started = started
        self._processes = processes
        self._leftovers = Leftovers(self._state, Path(settings.paths.inbox))
        self._standing = standing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._standing.pid

    def hand_over(self, name: str, data: bytes, *, serial: bool) -> str:
        """Hand a file over, or go on with what an earlier ``run`` of it has left;
        return its batch's name.
        """
        deadline = time.monotonic() + _PATIENCE_S
        claim: claims.Claim | None = None
        waited_for: set[str] = set()
        try:
            while True:
                left = None if claim else self._leftovers.find(name, data, waited_for)
                if left is None and claim is None:
                    claim = claims.hand_over(self._state, name, data, self._leftovers.issue)
                try:
                    batch = self._begun(claim, left, deadline, serial=serial)
                except UsageError:
                    if left is None or left.batch is None:
                        raise
                    # By another `run` of the same file: this one is its own.
                    waited_for.add(left.batch.name)
                    continue
                if batch:
                    if left is not None:
                        print(f"{name}: {_GOES_ON}", file=sys.stderr)
                    return batch
                self._connect_again()
        except BaseException:
            if claim is not None:
                # Its ticket stays: what is stored by now goes on with the next `run` of it.
                claim.path.unlink(missing_ok=True)
            raise

    def ended(self, name: str, data: bytes) -> str:
        """Return the batch of a file that has ended while no ``run`` of it was there, and say so;
        empty: there is none.
        """
        batch = self._leftovers.ended(name, data, self._settings.paths.outbox)
        if batch is None:
            return ""
        leftovers.say_ended(name)
        return batch.name

    def _begun(
        self, claim: claims.Claim | None, left: Leftover | None, deadline: float, *, serial: bool
    ) -> str:
        """Return the batch of a file that is new, or was left;
        empty where the daemon has ended, or does just now.
        """
        batch = left.batch if left else None
        if batch is not None:
            self._insist_as_begun(batch, serial=serial)
            if self._standing.watching:
                return batch.name  # it has taken that up by itself
            return self._asked(control.Submit(batch=batch.name), deadline)
        ulid = claim.ulid if claim else left.claim if left else ""
        return self._asked(control.Submit(claim=ulid, parallel=int(serial)), deadline)

    def _insist_as_begun(self, batch: Batch, *, serial: bool) -> None:
        """Refuse to go on with a batch otherwise than it was begun. Raises ``NotPossibleError``."""
        again = f"or end it and begin again: batchd cancel {batch.name}"
        if serial and batch.parallel != 1:
            raise NotPossibleError(
                f"{batch.name} is half-finished, and was not started with --serial: leave that out, {again}"
            )
        if batch.outbox != self._settings.paths.outbox:
            raise NotPossibleError(
                f"{batch.name} is half-finished, and its results lie in {batch.outbox}, not in "
                f"{self._settings.paths.outbox}: run it as before, with or without --here, {again}"
            )

    def _asked(self, wanted: control.Submit, deadline: float) -> str:
        """Return the batch of what is wanted;
        empty where the daemon has ended, or does just now.
        """
        try:
            return self._connection.ask(wanted, timeout_s=None).batch
        except NoDaemonError:
            # What it has taken up stays taken up: to ask again is no second order.
            if time.monotonic() > deadline:
                raise
            return ""

    def _connect_again(self) -> None:
        """Find the next daemon, where this one has just ended."""
        self._connection.__exit__()
        time.sleep(_LOOK_S)
        found = _connected(self._settings, processes=self._processes)
        self._connection, self._standing, self._started = found

    def forget(self, batches: Iterable[Batch]) -> None:
        """Remove the tickets of batches that have ended."""
        self._leftovers.forget(batches)

    def without_us(self, names: Sequence[str]) -> str:
        """Return what becomes of batches that no one waits for any more, unless it was said."""
        if self._standing.watching:
            known = " ".join(names)
            return f"The daemon goes on with it: batchd status {known}; batchd cancel ends it."
        return (
            "It is left as it is, and nothing more of it begins: `batchd run` of the same file goes\n"
            "on with it, and so does `batchd serve`; `batchd cancel` ends it."
        )

    def detach(self, names: Sequence[str]) -> None:
        """Let batches go on where no one waits for them."""
        for name in names:
            control.ask(self._state, control.Detach(batch=name))

    def cancel(self, names: Sequence[str]) -> None:
        """End what is left of batches."""
        for name in names:
            with contextlib.suppress(UsageError):  # it has ended meanwhile
                control.ask(
                    self._state, control.Cancel(target=name, message="the run was interrupted")
                )

    def show_lines(self) -> None:
        """Show what it says, if it was started here."""
        if self._started is not None:
            self._started.lines.show()

    def leave(self) -> None:
        """Wait until a daemon of ``run`` has let go of the spool, unless others have it work:
        what comes next may be `serve`.
        """
        self._connection.__exit__()
        deadline = time.monotonic() + _LEAVES_S
        while not self._standing.watching and time.monotonic() < deadline:
            try:
                if control.ask(self._state, control.Status()).batches.open:
                    return
            except NoDaemonError:
                if not locked(self._state):
                    break
            time.sleep(_LOOK_S)
        if self._started is not None:
            self._started.bury(deadline)

    def alive(self) -> bool:
        """Return whether it is still there."""
        # Not over the connection that stays:
        # Ctrl-C may come before its answer, which the next question would get.
        try:
            return control.ask(self._state, control.Status()).pid == self.pid
        except NoAnswerError:
            return True  # it has much to do
        except NoDaemonError:
            return False


def running(settings: config.Config, *, processes: int | None) -> DaemonConnection | None:
    """Return the daemon that works on the spool; None: there is none.

    Raises ``UsageError`` where it would work otherwise.
    """
    state = Path(settings.paths.state)
    admission.insist_own(state)
    try:
        connection = control.Connection(state)
        standing = connection.ask(control.Status())
    except NoDaemonError:
        return None
    admission.insist_alike(settings, standing, processes)
    return DaemonConnection(settings, connection, standing, started=None)


def start(
    settings: config.Config, *, processes: int | None, standby: Standby | None
) -> DaemonConnection:
    """Start a daemon for this ``run``, or return the one that another ``run`` has just started.

    Raises what it cannot start for.

    ``standby``: one that loads already.
    """
    connection, standing, started = _connected(settings, processes=processes, standby=standby)
    return DaemonConnection(settings, connection, standing, started=started, processes=processes)


def _connected(
    settings: config.Config, *, processes: int | None, standby: Standby | None = None
) -> tuple[control.Connection, control.DaemonStatus, Standby | None]:
    """Return a connection, how the daemon stands,
    and the one that was started for it, if that is it.
    """
    state, deadline = Path(settings.paths.state), time.monotonic() + _PATIENCE_S
    started: Standby | None = None
    while True:
        try:
            connection = control.Connection(state)
            standing = connection.ask(control.Status())
        except NoDaemonError:
            if time.monotonic() > deadline:
                raise
        else:
            if standby is not None:
                standby.dismiss()
            if started is None:
                admission.insist_alike(settings, standing, processes)
            return connection, standing, started
        # Others may start at the same time: who holds the lock comes up, or ends.
        if locked(state):
            time.sleep(_LOOK_S)
        else:
            daemon, standby = standby or Standby(settings, processes), None
            started = daemon if daemon.begin() else None
