"""How the daemon stands, for ``status``, and what would fail, for ``check``."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec

from batchd import decoders, users
from batchd.config import Config
from batchd.control import AskStatus, Check, Checked, CheckLine, DaemonStatus, ShownParking, status
from batchd.control.requests import DaemonProcess, SettingsInForce
from batchd.daemon import main_loop
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.reloading import Reloader
from batchd.daemon.troubles import Tries
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError, UsageError
from batchd.gone import GONE_FIELDS
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.log import Action
from batchd.masking import Masker
from batchd.pauses import aside
from batchd.records import Cause, Parking, Scope
from batchd.store.queries import StoreReader
from batchd.store.shown import BatchJson, filled
from batchd.version import __version__

#: A question about more batches is cut: an answer is one line.
_MAX_BATCHES = 1000
#: Money's day ends at midnight UTC.
_DAY_S = 86400.0
#: By trouble, what `check` calls the folder that it concerns.
_FOLDERS: Mapping[str, str] = {
    Action.INBOX_TROUBLE: "inbox",
    Action.OUTBOX_TROUBLE: "outbox",
    Action.STORE_TROUBLE: "state",
}


class HostCheck(Protocol):
    """A look at everything that a configuration names, with the rights of its process. Blocks."""

    def __call__(
        self, settings: Config, *, offline: bool, models: Iterable[str] = ()
    ) -> Iterator[CheckLine]:
        """Yield a line for each thing; ``models``: those in use beside the configuration's own."""


@dataclass(slots=True, eq=False, repr=False)
class Desk:
    """Says what the daemon does right now, and what would fail; the listeners' ``StatusDesk``."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _governor: Governor
    _batches: OpenBatches
    _attempts: Attempts
    _reloader: Reloader
    #: What ``check`` looks with; None: this daemon knows how it stands, and not how to look.
    _host_check: HostCheck | None
    #: Whether what is dropped is taken up.
    _watching: bool
    #: ``Config.conditions`` as it began, where it works for ``batchd run`` alone:
    #: to ask for them reads key files.
    _conditions: str = ""
    _started_at: float = field(default_factory=time.time)
    #: The look under way, for all who ask meanwhile:
    #: each takes a trial of the sandbox, and asks every provider.
    _under_way: dict[bool, asyncio.Future[tuple[CheckLine, ...]]] = field(default_factory=dict)

    async def status(self, request: AskStatus) -> DaemonStatus:
        """Return how the daemon does, and the batches that are asked for.

        Raises ``StoreError``.
        """
        last = max(0, min(request.last, _MAX_BATCHES))
        rows: tuple[BatchJson, ...] = ()
        if last or request.batch:
            rows = await asyncio.to_thread(_listed, self._store.path, last, request.batch)
        return msgspec.structs.replace(
            self.standing(),
            rows=rows,
            running=tuple(
                filled(
                    status.RunningTask, a, a.worker, task=str(a.ref), worker=a.worker.pid or None
                )
                for a in self._attempts.active
            ),
        )

    def standing(self) -> DaemonStatus:
        """Return how the daemon stands, without single tasks and models."""
        given_back = self._lifecycle.given_back
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            draining=main_loop.current().closing,
            watching=self._watching,
            outbox=self._current.config.paths.outbox,
            conditions=self._conditions,
            batches=status.BatchCounts(open=len(self._batches)),
            tasks=status.TaskCounts(
                queued=self._lifecycle.waiting - given_back,
                parked=given_back,
                running=len(self._attempts.active),
                waiting=self._governor.waiting,
            ),
            slots=self._attempts.pool.agents,
            providers=decoders.convert(self._governor.figures(), dict[str, status.ProviderStatus]),
            day=status.DayStatus(**self._governor.money.figures()),
            parked=tuple(ShownParking.of(self._dated(p)) for p in self._lifecycle.holds.parkings),
            troubles=self._store.troubles.open,
            fetching=self._attempts.bases.fetching,
            workers=tuple(
                filled(status.WorkerStatus, w, pid=w.pid or None, tasks=len(w.tasks))
                for w in self._attempts.pool.workers
            ),
            unfit={
                name: str(machine.trouble[0])
                for name, machine in self._attempts.pool.machines.items()
                if machine.trouble
            },
        )

    def _dated(self, parking: Parking) -> Parking:
        """Return a parking with when it is tried again by itself."""
        again_s, now = None, time.time()
        if parking.cause is Cause.BUDGET:
            again_s = _DAY_S - now % _DAY_S
        elif parking.scope.asked and parking.cause.reason:
            again_s = self._governor.outages.again_s(parking.name)
        return replace(parking, again_at=None if again_s is None else round(now + again_s, 1))

    def trying(self, action: Action) -> Tries:
        """Return what notes that some work fails, and when it works again."""
        return self._store.troubles.trying(action)

    async def check(self, request: Check) -> Checked:
        """Look at everything, and return what there is to say."""
        if request.live:
            raise UsageError(GONE_FIELDS["check live"])
        looked = await self._looked(offline=request.offline)
        return Checked(
            process=_process(),
            settings=await aside(self._settings, "check"),
            lines=(*looked, *self._parked(), *self._troubled(looked)),
        )

    async def _looked(self, *, offline: bool) -> tuple[CheckLine, ...]:
        if self._host_check is None:
            return ()
        look = self._under_way.get(offline)
        if look is None:
            config, models = self._current.config, tuple(sorted(self._lifecycle.models()))
            look = asyncio.ensure_future(
                aside(lambda: self._found(config, models, offline=offline), "check")
            )
            self._under_way[offline] = look
            look.add_done_callback(lambda _: self._under_way.pop(offline))
        # Who goes away takes it from no one else.
        return await asyncio.shield(look)

    def _found(
        self, config: Config, models: tuple[str, ...], *, offline: bool
    ) -> tuple[CheckLine, ...]:
        assert self._host_check is not None, "there is one"
        masker = Masker(config.hidden())
        found = self._host_check(config, offline=offline, models=models)
        return tuple(
            CheckLine(line.verdict, line.what, masker.text(line.detail), masker.text(line.mend))
            for line in found
        )

    def _settings(self) -> SettingsInForce:
        """Return what is in force, and how its file differs by now."""
        config, unread = self._current.config, ""
        stale: list[str] = []
        late: list[str] = []
        try:
            stale, late = self._reloader.unlike()
        except BatchdError as error:
            unread = str(error)
        return SettingsInForce(
            file=config.file,
            paths=asdict(config.paths),
            stale=tuple(stale),
            late=tuple(late),
            unread=unread,
            overrides=self._reloader.overrides,
        )

    def _parked(self) -> Iterator[CheckLine]:
        """Yield the providers and models that are out of order, as calls have found."""
        holds = self._lifecycle.holds
        for name in holds.outages():
            scope = Scope.of(name)
            for cause, parking in holds.causes((scope, name)).items():
                if cause.reason:
                    said = f"its tasks wait, {cause}: {parking.message}"
                    resume = f"batchd resume --{scope} {name}"
                    retry = "batchd retry --failed --model PROVIDER/MODEL BATCH"
                    yield CheckLine("failed", f"{scope} {name}", said, cause.fix(resume, retry))

    def _troubled(self, looked: Iterable[CheckLine]) -> Iterator[CheckLine]:
        """Yield what the daemon cannot do at this time, unless a look has found the same."""
        found = {(line.what, line.mend) for line in looked}
        for trouble in self._store.troubles.open:
            if (_FOLDERS.get(trouble.what), trouble.mend) in found:
                continue
            what = trouble.what.replace("_", " ")
            yield CheckLine("failed", what, trouble.message, trouble.mend)


def _listed(store: Path, last: int, batch: str) -> tuple[BatchJson, ...]:
    """Return a batch, or without a name so many of the newest. Raises ``StoreError``."""
    with StoreReader(store) as reader:
        found = [reader.batch(batch)] if batch else reader.batches(limit=last)
        return tuple(map(BatchJson.of, found))


def _process() -> DaemonProcess:
    uid = os.geteuid()
    return DaemonProcess(
        pid=os.getpid(),
        version=__version__,
        uid=uid,
        user=users.user(uid),
        groups=tuple(map(users.group, dict.fromkeys((os.getegid(), *os.getgroups())))),
    )
