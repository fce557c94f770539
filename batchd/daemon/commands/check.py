"""``check``: what would fail, as the daemon sees it:
with its own rights, keys and configuration.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from batchd import __version__, users
from batchd.config import Config
from batchd.control import Check, Checked, CheckLine
from batchd.control.requests import DaemonProcess, SettingsInForce
from batchd.daemon.reloading import Reloader
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.tuning import CurrentConfig
from batchd.errors import GONE_FIELDS, BatchdError, UsageError
from batchd.lifecycle import Lifecycle
from batchd.log import Action
from batchd.masking import Masker
from batchd.pauses import aside
from batchd.records import Scope

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
class Checks:
    """Looks for what would fail, and says what is in force."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _troubles: TroubleLog
    _reloader: Reloader
    #: None: this daemon knows how it stands, and not how to look.
    _look: HostCheck | None
    #: The look under way, for all who ask meanwhile:
    #: each takes a trial of the sandbox, and asks every provider.
    _under_way: dict[bool, asyncio.Future[tuple[CheckLine, ...]]] = field(default_factory=dict)

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
        if self._look is None:
            return ()
        look = self._under_way.get(offline)
        if look is None:
            config, models = self._current.config, tuple(sorted(self._lifecycle.models()))
            look = asyncio.ensure_future(
                aside(lambda: self._lines(config, models, offline=offline), "check")
            )
            self._under_way[offline] = look
            look.add_done_callback(lambda _: self._under_way.pop(offline))
        # Who goes away takes it from no one else.
        return await asyncio.shield(look)

    def _lines(
        self, config: Config, models: tuple[str, ...], *, offline: bool
    ) -> tuple[CheckLine, ...]:
        assert self._look is not None, "there is one"
        masker = Masker(config.hidden())
        found = self._look(config, offline=offline, models=models)
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
            paths={
                "inbox": config.paths.inbox,
                "outbox": config.paths.outbox,
                "state": config.paths.state,
            },
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
                    said = f"{name} is parked, {cause}: {parking.message}"
                    resume = f"batchd resume --{scope} {name}"
                    retry = "batchd retry --failed --model PROVIDER/MODEL BATCH"
                    yield CheckLine("failed", f"{scope} {name}", said, cause.fix(resume, retry))

    def _troubled(self, looked: Iterable[CheckLine]) -> Iterator[CheckLine]:
        """Yield what the daemon cannot do at this time, unless a look has found the same."""
        found = {(line.what, line.mend) for line in looked}
        for trouble in self._troubles.open:
            if (_FOLDERS.get(trouble.what), trouble.mend) in found:
                continue
            what = trouble.what.replace("_", " ")
            yield CheckLine("failed", what, trouble.message, trouble.mend)


def _process() -> DaemonProcess:
    uid = os.geteuid()
    return DaemonProcess(
        pid=os.getpid(),
        version=__version__,
        uid=uid,
        user=users.user(uid),
        groups=tuple(map(users.group, dict.fromkeys((os.getegid(), *os.getgroups())))),
    )
