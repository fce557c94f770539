"""What an installation comes to:
the steps, the orders to systemd behind them, and what is left to say.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from batchd import config
from batchd.cli.systemd import units
from batchd.cli.systemd.install_steps import (
    FileStep,
    FolderStep,
    InstallationRecord,
    Step,
    UserStep,
)
from batchd.config import finding, operator_files, own, trust_lists
from batchd.config.sections import PathsSection
from batchd.errors import NotPossibleError, UsageError
from batchd.spool.new_spool import NewSpool

UNIT = "batchd.service"
#: The account of the system's service, and where its spool lies.
_USER, _HOME = "batchd", "/var/lib/batchd"
_UNITS = Path("/etc/systemd/system")
#: What is noted of an installation.
_NOTES = "systemd.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationPlan:
    """An installation."""

    notes: InstallationRecord
    steps: tuple[Step, ...]
    #: How its manager is called.
    systemctl: tuple[str, ...]
    #: Whether the key is there already, so that the service can work at once.
    ready: bool
    #: What is left to the user, before it is started where it is not ready.
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()

    @property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """What systemd is ordered once all is in place."""
        enable = ("enable", "--now") if self.ready else ("enable",)
        return ((*self.systemctl, "daemon-reload"), (*self.systemctl, *enable, "batchd"))

    @property
    def start(self) -> str:
        """The command that starts it."""
        return shlex.join((*self.systemctl, "start", "batchd"))


def notes(environ: Mapping[str, str], *, user: bool) -> InstallationRecord:
    """Return where it is noted what was installed. Raises ``NotPossibleError``."""
    return InstallationRecord((_own(environ) if user else trust_lists.SYSTEM) / _NOTES)


def of_ones_own(directory: Path, environ: Mapping[str, str]) -> InstallationPlan:
    """Return what a service of one user comes to, for the spool in a directory.

    Raises ``BatchdError``.
    """
    file = directory / trust_lists.CONFIG
    if not finding.stands(file):
        raise UsageError(f"there is no spool in {directory}: {own.command(directory)} makes one")
    finding.trusted(file, environ)
    # Variables of this session are none of the service's.
    settings = config.load(file, {"HOME": environ.get("HOME", "")})
    folder = _own(environ)
    env = folder / "env"
    known = notes(environ, user=True)
    units.reach([*units.installed(), str(directory)], system=False)
    values = {
        "ExecStart": _command(file),
        "WorkingDirectory": units.plain(str(directory)),
        "EnvironmentFile": f"-{units.plain(str(env))}",
        "ReadWritePaths": " ".join(_written(settings, directory)),
    }
    remark = "Written by `batchd init --systemd --user`; `--remove` with it takes it back."
    unit = units.filled(units.shipped("batchd-user.service"), values, remark)
    place = _manager(environ) / UNIT
    variable, ready = _key(settings)
    # First where the notes lie.
    steps = [*_folders(folder, 0o700), *_folders(place.parent, 0o755), _unit(place, unit, known)]
    if variable and not env.exists():
        steps.append(FileStep(path=str(env), mode=0o600, text=f"# {variable}=…\n"))
    ready = ready or _says(env, variable)
    return InstallationPlan(
        notes=known,
        steps=tuple(steps),
        systemctl=("systemctl", "--user"),
        ready=ready,
        first=_missing(settings, variable, env) if not ready else (),
        then=("loginctl enable-linger    # keep it running after logout",),
    )


def of_the_system(
    wanted: Callable[[Path], NewSpool], environ: Mapping[str, str]
) -> InstallationPlan:
    """Return what a service of the system comes to.

    ``wanted``: asks what a new spool is to be like. Raises ``BatchdError``.
    """
    file = trust_lists.SYSTEM / trust_lists.CONFIG
    known = notes(environ, user=False)
    units.reach(units.installed(), system=True)
    steps: list[Step] = [*_folders(trust_lists.SYSTEM, 0o755)]  # where the notes lie, too
    first: list[str] = []
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        steps.append(UserStep(name=_USER, home=_HOME))
    extra: list[Step] = []
    written: list[str] = []
    ready = True
    if not finding.stands(file):
        asked = replace(wanted(trust_lists.SYSTEM), place=_HOME)
        key = Path(asked.key_file or trust_lists.SYSTEM / f"{asked.provider}.key")
        if asked.key_env or asked.key_file:
            asked = replace(asked, key_env="", key_file=asked.provider)
            ready = key.exists()
            if not ready:
                steps.append(FileStep(path=str(key), mode=0o600))
                first.append(f"sudoedit {shlex.quote(str(key))}    # the key alone")
            credential = f"{asked.provider}:{units.plain(str(key))}"
            extra = _drop_in(f"[Service]\nLoadCredential={credential}\n", known)
        config.load(file, {}, draft=asked.text())  # it raises for what would not work
        steps.append(FileStep(path=str(file), mode=0o644, text=asked.text()))
    else:
        written = [*_written(config.load(file, {}), Path(_HOME))]
    unit = units.filled(
        units.shipped("batchd.service"),
        {"ExecStart": _command(file)},
        "Written by `batchd init --systemd`; `--remove` with it takes it back.",
    )
    if further := [path for path in written if path != units.word(_HOME)]:
        unit = unit.replace("#ReadWritePaths=/srv/work", f"ReadWritePaths={' '.join(further)}")
    steps += [_unit(_UNITS / UNIT, unit, known), *extra]
    for path, mode in ((_HOME, 0o750), (f"{_HOME}/{PathsSection().inbox}", 0o3770)):
        if not Path(path).exists():
            steps.append(FolderStep(path=path, mode=mode, owner=_USER))
    return InstallationPlan(
        notes=known,
        steps=tuple(steps),
        systemctl=("systemctl",),
        ready=ready,
        first=tuple(first),
        then=(f'usermod -aG {_USER} "$USER"    # who is in the group drops files, reads results',),
    )


def _command(file: Path) -> str:
    program = units.word(str(units.program()), command=True)
    return f"{program} --config {units.word(str(file), command=True)} serve"


def _written(settings: config.Config, directory: Path) -> Iterator[str]:
    """Yield the folders that the service writes in:
    the spool's, and what of the workspace lies elsewhere.
    """
    yield units.word(str(directory))
    paths, workspace = settings.paths, settings.workspace
    found = (paths.inbox, paths.outbox, paths.state, workspace.root, *workspace.allow)
    for path in dict.fromkeys(found):
        if not Path(path).is_relative_to(directory):
            # Its absence must not keep the service from starting.
            yield units.word(f"-{path}")


def _key(settings: config.Config) -> tuple[str, bool]:
    """Return the variable that the model's key is to be in,
    and whether the service has the key without it.
    """
    provider = settings.providers[settings.agent.model.partition("/")[0]]
    if provider.api_key_file:
        return "", Path(provider.api_key_file).is_file()
    return provider.api_key_env, not provider.api_key_env


def _says(env: Path, variable: str) -> bool:
    """Return whether a file of variables has this one."""
    try:
        return bool(
            re.search(rf"(?m)^{re.escape(variable)}=\S", operator_files.content(env).decode())
        )
    except (OSError, UnicodeDecodeError):
        return False


def _missing(settings: config.Config, variable: str, env: Path) -> tuple[str, ...]:
    """Return how the key gets to where it is to be."""
    if variable:
        return (f"echo {variable}=… >> {shlex.quote(str(env))}",)
    provider = settings.providers[settings.agent.model.partition("/")[0]]
    return (f"put the key into {provider.api_key_file} (chmod 600)",)


def _unit(place: Path, text: str, known: InstallationRecord) -> FileStep:
    """Return the step that writes a unit.

    Raises ``NotPossibleError`` where another one stands there.
    """
    step = FileStep(path=str(place), mode=0o644, text=text)
    mine = next((s for s in known.read() if isinstance(s, FileStep) and s.path == step.path), None)
    if os.path.lexists(place) and not (mine and mine.untouched()):
        raise NotPossibleError(
            f"{place} is there already, and not as `batchd init` writes it: move it away "
            f"first, and put changes of your own into files in {place}.d/"
        )
    return step


def _drop_in(text: str, known: InstallationRecord) -> list[Step]:
    """Return the steps that put a file of its own beside the system's unit."""
    folder = _UNITS / f"{UNIT}.d"
    return [*_folders(folder, 0o755), _unit(folder / "key.conf", text, known)]


def _folders(folder: Path, mode: int) -> list[Step]:
    """Return the steps that make a folder, and what is missing above it."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    return [FolderStep(path=str(place), mode=mode) for place in reversed(missing)]


def _own(environ: Mapping[str, str]) -> Path:
    folder = trust_lists.folders(environ)[0]
    if folder == trust_lists.SYSTEM:
        raise NotPossibleError("this user has no home for a service of their own: set HOME")
    return folder


def _manager(environ: Mapping[str, str]) -> Path:
    """Return where a user's manager has its units:
    beside batchd's own folder, whichever variable led there.
    """
    return _own(environ).parent / "systemd" / "user"
