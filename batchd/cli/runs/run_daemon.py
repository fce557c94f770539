"""The daemon that does the work of a ``run``: the one that is there, or ``serve``,
started as a child for this one purpose.

While its connection to the daemon is open, a ``run`` waits for its batches. A daemon that was
started for it gives up what no one waits for, and ends when nothing is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from batchd import config, control, users
from batchd.cli.display import formatting
from batchd.errors import (
    NoAnswerError,
    NoDaemonError,
    NotPossibleError,
    OlderStoreError,
    UsageError,
)
from batchd.records import Cause, Scope
from batchd.spool import claims
from batchd.store.queries import StoreReader

#: How long another daemon may take to come up, or to end.
_PATIENCE_S = 60.0
_LOOK_S = 0.02
#: How long a child may take to end, once nothing is left to do.
_LEAVES_S = 10.0
#: What earlier daemons have said is kept up to here (bytes).
_MOST_SAID = 1 << 20
#: What a child ends with where another daemon was faster.
LOCKED = 75


class RunDaemon:
    """The daemon that works for this process; as a context, it closes the connection to it."""

    def __init__(self, settings: config.Config, file: Path | None, processes: int | None) -> None:
        """``file``: of the configuration, as it was named; ``processes``: those of a child.

        Raises ``NotPossibleError`` where the spool is another user's: what is written there may go
        through a link of theirs, root's too.
        """
        self._settings = settings
        self._file = file
        self._processes = processes
        self._state = Path(settings.paths.state)
        self._child: subprocess.Popen[bytes] | None = None
        #: What a child says: it may outlive this terminal, so its stderr is a file.
        self._log = self._state / "run.log"
        self._shown = 0
        self._connection: control.Connection | None = None
        self._standing: control.DaemonStatus | None = None
        state = self._state
        if users.barred(state) or (state.exists() and state.stat().st_uid != os.geteuid()):
            raise users.forbidden("`batchd run` here", state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection: no one waits any more."""
        if self._connection is not None:
            self._connection.__exit__()

    @property
    def status(self) -> control.DaemonStatus:
        """How it stood when it was reached."""
        assert self._standing is not None
        return self._standing

    def reached(self) -> bool:
        """Connect to the daemon that is there; return whether one is.

        Raises ``UsageError`` where it would work otherwise than one of our own.
        """
        try:
            connection = control.Connection(self._state)
            standing = connection.ask(control.AskStatus())
        except NoDaemonError:
            return False
        if self._child is None or standing.pid != self._child.pid:
            self._insist_alike(standing)
        self._connection, self._standing = connection, standing
        return True

    def start(self) -> None:
        """Connect to a daemon, and start one as often as none is there.

        Raises what it cannot start for, and what ``reached`` raises.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not self.reached():
            if time.monotonic() > deadline:
                raise NoDaemonError(f"no daemon comes up on {self._state}")
            code = None if self._child is None else self._child.poll()
            # Others may start at the same time: who holds the lock comes up, or ends.
            if code not in {None, 0, LOCKED} and not _locked(self._state):
                kind = UsageError if code == UsageError.exit_code else NotPossibleError
                said = self._news().strip().removeprefix("batchd: ").replace("\nbatchd: ", "\n")
                raise kind(said or f"its daemon ended before it was up: see {self._log}")
            if (self._child is None or code is not None) and not _locked(self._state):
                self._spawn()
            time.sleep(_LOOK_S)

    def hand_over(self, name: str, data: bytes, mark: str, *, serial: bool) -> tuple[str, bool]:
        """Have a file worked on; return its batch's name, and whether an earlier ``run`` began it.

        ``mark``: as in ``control.Submit.run``.
        """
        claim = claims.hand_over(self._state, name, data)
        order = control.Submit(claim=claim.ulid, run=mark, parallel=int(serial))
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while True:
                try:
                    assert self._connection is not None
                    # What it has taken up stays taken up: to ask again is no second order.
                    if (taken := self._connection.ask(order, timeout_s=None)).batch:
                        return taken.batch, taken.again
                except NoDaemonError:
                    if time.monotonic() > deadline:
                        raise
                self.close()  # it ended just now
                time.sleep(_LOOK_S)
                self.start()
        except BaseException:
            claim.path.unlink(missing_ok=True)
            raise

    def without_us(self, names: Sequence[str]) -> str:
        """Return what becomes of batches that no one waits for any more, unless it was said."""
        if self.status.watching:
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
        """Show what a child has said since the last time."""
        if self._child is not None and (news := self._news()):
            sys.stderr.write(news)
            sys.stderr.flush()

    def alive(self) -> bool:
        """Return whether it is still there; show what a child has said since the last time."""
        self.show_lines()
        # Not over the connection that stays:
        # Ctrl-C may come before its answer, which the next question would get.
        try:
            return control.ask(self._state, control.AskStatus()).pid == self.status.pid
        except NoAnswerError:
            return True  # it has much to do
        except NoDaemonError:
            return False

    def leave(self) -> None:
        """Close the connection; wait until a child has let go of the spool, unless others have it
        work: what comes next may be ``serve``.
        """
        self.close()
        if self._child is None:
            return
        deadline = time.monotonic() + _LEAVES_S
        self.show_lines()
        while self._child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(NoDaemonError):
                if control.ask(self._state, control.AskStatus()).batches.open:
                    return
            time.sleep(_LOOK_S)

    def _spawn(self) -> None:
        """Start ``serve`` for this ``run``, in a session of its own: Ctrl-C is for this process,
        which asks what is to become of the other one.
        """
        settings = self._settings
        changed = {}
        if self._processes is not None:
            changed["BATCHD_POOL__PROCESSES"] = str(self._processes)
        if settings.log.format == "auto" and sys.stderr.isatty():
            changed["BATCHD_LOG__FORMAT"] = "console"  # of the terminal on which it is shown
        given = () if self._file is None else ("--config", str(self._file))
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        said = os.open(self._log, flags, 0o600)
        try:
            if os.fstat(said).st_size > _MOST_SAID:
                os.ftruncate(said, 0)
            self._shown = os.fstat(said).st_size
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "batchd", *given, "serve", "--for-run"],
                # The keys are in this environment alone: those of this process are gone.
                env={**settings.environ, **changed},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        finally:
            os.close(said)

    def _news(self) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as said:
            said.seek(min(self._shown, os.fstat(said.fileno()).st_size))
            news = said.read()
            self._shown = said.tell()
            return news.decode("utf-8", "replace")
        return ""

    def _insist_alike(self, standing: control.DaemonStatus) -> None:
        """Refuse to have a daemon work that would do it otherwise than one of our own.

        Raises ``UsageError``.
        """
        settings, theirs = self._settings, f"process {standing.pid} works here"
        slots = self._processes and self._processes * settings.pool.agents_per_process
        if self._processes is not None and (standing.watching or slots != standing.slots):
            raise UsageError(
                f"--processes is for a daemon of its own, and {theirs}: leave it out, or change "
                "that daemon with `batchd tune pool.processes=N`"
            )
        if standing.outbox not in {"", settings.paths.outbox}:
            raise UsageError(
                f"{theirs}, and its results lie in {standing.outbox}, not in "
                f"{settings.paths.outbox}: name its configuration, or wait until it ends"
            )
        if standing.conditions not in {"", settings.conditions()}:
            raise UsageError(
                f"{theirs} for another `batchd run`, whose keys, models, limits or sandbox are not "
                "yours: wait until it ends, or use a spool of your own (`batchd init DIR`)"
            )


def _locked(state: Path) -> bool:
    """Return whether somebody holds the spool's lock at this moment."""
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_paused(settings: config.Config, models: Collection[str]) -> None:
    """Refuse to wait for what people have paused. Raises ``NotPossibleError``."""
    store = formatting.store_path(Path(settings.paths.state))
    if not store.exists():
        return
    names = {*models, *(model.partition("/")[0] for model in models)}
    try:
        with StoreReader(store) as reader:
            paused = [p for p in reader.parked() if p.cause is Cause.PAUSED]
    except OlderStoreError:
        return  # the daemon that comes migrates it
    for parking in paused:
        if parking.scope is Scope.ALL or (parking.scope.asked and parking.name in names):
            what = parking.name or "everything"
            option = f" --{parking.scope} {parking.name}" if parking.name else ""
            raise NotPossibleError(f"{what} is paused ({parking.message}): batchd resume{option}")
