"""Where a storm takes place: a spool with its daemon, two providers,
a clock, small disks where this user may mount.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from arena import Arena, Model
from clock import Clock
from disks import Disk, disks
from files import LANES
from progress import Hindrance, Journal
from witness import ServerLog

#: Dollars for a million tokens, of input and of output.
PRICE = (1.0, 2.0)
#: Deaths of its own worker that a task survives.
MAX_ATTEMPTS = 4
#: What the folders of other outboxes begin with.
OTHER = "other-"
#: How a daemon may end by our signals:
#: it heeds those to end and to reload from the time on that it is up.
_SIGNALLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)

_CONFIG = """\
[paths]
outbox = "{outbox}"
state = "{state}"
[agent]
model = "north/steps-3"
[pool]
processes = {processes}
agents_per_process = {agents}
max_attempts = {attempts}
heartbeat_timeout_s = 10.0
drain_s = 3
[evaluation]
by = "none"
[governor]
max_retries = 4
first_backoff_s = 0.1
max_backoff_s = 1.0
probe_s = 0.5
max_probe_s = 4.0
[limits]
max_output_tokens = 200
call_timeout_s = 3.0
[budget]
per_day_usd = {per_day_usd}
[report]
enabled = false
[spool]
settle_s = 0.3
scan_s = 1.0
[store]
retention_days = 3650
[log]
format = "json"
"""
_PROVIDER = """\
[providers.{name}]
base_url = "{base_url}"
max_concurrent = 16
"""
_MODEL = """\
[models."{name}"]
input_usd_per_mtok = {price[0]}
output_usd_per_mtok = {price[1]}
"""


@dataclass(frozen=True)
class Settings:
    """What of the configuration a storm changes."""

    #: The outbox as it is but for a while, and as it is now.
    home: str
    outbox: str
    state: str
    processes: int = 3
    agents: int = 3
    per_day_usd: float = 0.0
    #: Providers that it has.
    providers: tuple[str, ...] = ("north", "south")
    #: What makes it invalid.
    wrong: str = ""


@dataclass
class Ground:
    """All that a storm may strike."""

    arena: Arena
    models: Mapping[str, Model]
    disks: Mapping[str, Disk]
    clock: Clock
    settings: Settings
    journal: Journal = field(default_factory=Journal)
    complaints: list[str] = field(default_factory=list)
    #: The daemon was asked to end, and by when it must have.
    _ending: tuple[Hindrance, float] | None = None
    _not_before: float = 0.0
    #: Whether the daemon was started with a configuration that it must refuse.
    _began_wrong: bool = False
    #: When the clock was moved, by the true time, and by how much it was ahead from then on.
    moves: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])

    def outboxes(self) -> list[Path]:
        """Return where results may be: the outbox, and those that were configured for a while."""
        own = self.arena.folder / self.settings.home
        return [own, *sorted(self.arena.folder.glob(f"{OTHER}*/outbox"))]

    def configure(self, **changes: object) -> None:
        """Write the configuration with some settings changed;
        ``hang_up`` makes the daemon read it.
        """
        self.settings = dataclasses.replace(self.settings, **changes)  # type: ignore[arg-type]
        values = dataclasses.asdict(self.settings)
        text = self.settings.wrong + _CONFIG.format(**values, attempts=MAX_ATTEMPTS)
        for name in self.settings.providers:
            text += _PROVIDER.format(name=name, base_url=self.models[name].base_url)
        text += "".join(_MODEL.format(name=name, price=PRICE) for name in LANES)
        new = self.arena.folder / "config.new"
        new.write_text(text)
        new.rename(self.arena.folder / "config.toml")

    def signal(self, number: int) -> None:
        """Send the daemon a signal, where it lives."""
        if self.arena.daemon is not None:
            self.arena.daemon.send_signal(number)

    def move_clock(self, ahead_s: float) -> None:
        """Let the spool's clock be ahead by so much."""
        self.clock.set(ahead_s)
        self.moves.append((time.time(), ahead_s))

    def end_daemon(self, now: float, limit_s: float) -> None:
        """Ask the daemon to end, as systemd does before it starts it again."""
        if self._ending is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            hindrance = self.journal.begin(Hindrance("the daemon is asked to end", now))
            self._ending = hindrance, now + limit_s

    def keep_alive(self, now: float) -> None:
        """Start the daemon again where it has ended;
        complain of an end that was not brought about.
        """
        code = self.arena.daemon.poll() if self.arena.daemon else -signal.SIGKILL
        if self._ending and (code is not None or now > self._ending[1]):
            if code is None:
                self.complaints.append("SIGTERM has not ended the daemon")
                self.signal(signal.SIGKILL)
            elif code not in {0, *_SIGNALLED} and not self._excused(code):
                self.complaints.append(f"SIGTERM ended the daemon with {code}")
            self.journal.end(self._ending[0], now)
            self._ending = None
        elif code not in {None, *_SIGNALLED} and not self._excused(code):
            self.complaints.append(f"the daemon ended with {code}:\n{self.arena.tail()}")
        if code is not None and now >= self._not_before:
            self.journal.note(now, f"the daemon has ended with {code}, and is started")
            self._not_before = now + 0.5
            self._began_wrong = self._wrong
            self.arena.start()

    def _excused(self, code: int | None) -> bool:
        """Whether a daemon may refuse to start: the configuration is wrong,
        a disk takes nothing, or a command holds the lock.
        """
        if code == 2:  # it reads the configuration a moment after it is started
            return self._began_wrong or self._wrong
        return code == 3

    @property
    def _wrong(self) -> bool:
        return bool(self.settings.wrong) or len(self.settings.providers) < len(self.models)


@contextlib.contextmanager
def ground(folder: Path) -> Iterator[tuple[Ground, list[ServerLog]]]:
    """Give a ground, and the logs of its model servers; nothing of it is left at the end."""
    folder.mkdir()
    paths = {name: folder / f"{name}.log" for name in ("north", "south")}
    logs = [ServerLog(path, name) for name, path in paths.items()]
    with contextlib.ExitStack() as stack:
        models = {}
        for name, path in paths.items():
            model = models[name] = Model("--latency", "0.1", "--log", str(path))
            stack.callback(_stop, model)
            model.control(count=True)
        arena = Arena(folder, "")
        stack.callback(shutil.rmtree, arena.folder, ignore_errors=True)
        mounted = stack.enter_context(disks(arena.folder, arena.mark, "disk-out", "disk-state"))
        stack.callback(arena.clear)
        places = ("disk-out/outbox", "disk-state/state") if mounted else ("outbox", ".batchd")
        settings = Settings(places[0], *places)
        found = Ground(arena, models, mounted, Clock(arena.folder), settings)
        found.configure()
        yield found, logs


def _stop(model: Model) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        model.signal(signal.SIGCONT)
        model.stop()
