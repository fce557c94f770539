"""``batchd init --systemd``: shows what makes batchd a service, or drops a file at set times, and
does it after a yes.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from batchd import config, installation
from batchd.cli.display import formatting
from batchd.cli.runs import given_files
from batchd.config import trust
from batchd.config.sections import PathsSection
from batchd.errors import NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool import files
from batchd.spool.new_spool import NewSpool

#: What is left where systemd runs.
_RUNNING = Path("/run/systemd/system")
#: The account of the system's service, and where its spool lies.
_USER, _HOME = "batchd", "/var/lib/batchd"
_UNITS = Path("/etc/systemd/system")
#: How the units are called that drop files, before the files' names.
_TIMER = "batchd-every-"
#: A time of day, which is known without systemd too.
_SIMPLE = re.compile(r"((Mon|Tue|Wed|Thu|Fri|Sat|Sun) )?([01]\d|2[0-3]):[0-5]\d")
#: How each file begins that is ours to write again and to remove.
_OURS = "# Written by `batchd init --systemd"
_REMARK = f"{_OURS}`; `--remove` with it takes it back."


#: What each kind of unit hides of the machine, and the line that says so.
_TMP = {"/tmp": "PrivateTmp=yes", "/var/tmp": "PrivateTmp=yes"}  # noqa: S108 (nothing is put there)
_HOMES = dict.fromkeys(("/home", "/root", "/run/user"), "ProtectHome=yes")
_CODE = Path(__file__).parents[1]


class _File(NamedTuple):
    """A file that is to be written."""

    path: Path
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class _Service:
    """What a service is made of, in the order in which it is made."""

    systemctl: tuple[str, ...]
    files: list[_File]
    #: What makes users and folders, before the files.
    commands: list[tuple[str, ...]]
    #: What is left to the user.
    then: tuple[str, ...]
    #: What systemd is to start, now and at each boot.
    unit: str = "batchd"

    @property
    def orders(self) -> list[tuple[str, ...]]:
        """What systemd is ordered once all is in place."""
        enable = (*self.systemctl, "enable", "--now", self.unit)
        return [(*self.systemctl, "daemon-reload"), enable]


def run(args: argparse.Namespace, directory: Path, wanted: Callable[[Path], NewSpool]) -> int:
    """Install, or remove; 3 where systemd did not do what it was ordered.

    ``wanted``: asks what a new spool is to be like.
    """
    if not args.user and args.directory is not None:
        raise UsageError(
            "the system's service has its spool in /var/lib/batchd: leave DIR out, or give --user"
        )
    if args.remove:
        return _remove(args)
    if args.every:
        service, what = _of_a_timer(args, directory), f"drops {args.every[1]} at {args.every[0]}"
    else:
        service = _of_ones_own(directory, os.environ) if args.user else _of_the_system(wanted)
        what = "makes batchd a service"
    _show(f"This is what {escape(what)}:", _lines(service))
    if not _agreed(args):
        return 0
    for command in service.commands:
        _run(command)
    for file in service.files:
        _write(file)
    ordered = _ordered(service.orders)
    left = [] if ordered else map(shlex.join, service.orders)
    _show("\nDone. Next:", (*left, *service.then))
    print("`--remove` in place of `--yes` takes the unit back.")
    return 0 if ordered or not _systemd() else 3


def _lines(service: _Service) -> Iterator[str]:
    """Yield each step as it will be; of a unit's comments nothing."""
    yield from (f"run {shlex.join(command)}" for command in service.commands)
    for file in service.files:
        yield f"write {file.path} (mode {file.mode:04o})"
        lines = [line for line in file.text.splitlines() if line]
        said = [line for line in lines if line[0] != "#"]
        yield from (f"    {line}" for line in said or lines or ["(empty)"])
    left = "" if _systemd() else "    (no systemd runs here: left to you)"
    yield from (f"run {shlex.join(order)}{left}" for order in service.orders)


def _write(file: _File) -> None:
    """Write a file, and its folder; what stood there and was changed stays beside it."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    if file.path.exists() and file.path.read_text("utf-8") != file.text:
        file.path.replace(f"{file.path}.old")
    data = file.text.encode()
    files.write_whole(file.path, data, replace=True, mode=file.mode)
    file.path.chmod(file.mode)


def _remove(args: argparse.Namespace) -> int:
    systemctl = ("systemctl", "--user") if args.user else ("systemctl",)
    units = _manager(os.environ) if args.user else _UNITS
    unit = "batchd.service"
    patterns = [unit, f"{unit}.d/key.conf", f"{_TIMER}*"]
    if args.every:
        unit = f"{_timer(args.every[1])}.timer"
        patterns = [unit, f"{_timer(args.every[1])}.service"]
    ours = [path for pattern in patterns for path in units.glob(pattern) if _is_ours(path)]
    if not ours:
        raise NotPossibleError(f"{units / unit} is not there, or was not written by `batchd init`")
    # What drops a file when its timer says so has nothing to stop.
    stopping = [path.name for path in ours if path.name == unit or path.suffix == ".timer"]
    stop = (*systemctl, "disable", "--now", *stopping)
    again = (*systemctl, "daemon-reload")
    removed = [f"remove {path}" for path in ours]
    orders = [stop] if stopping else []
    _show("This takes it back:", [*(f"run {shlex.join(order)}" for order in orders), *removed])
    if not _agreed(args):
        return 0
    stopped = _ordered(orders)
    for path in ours:
        path.unlink()
    done = stopped and _ordered([again])
    place = _own(os.environ) if args.user else trust.SYSTEM
    stays = f"{place}" if args.user else f"{place}, {_HOME} and the user {_USER}"
    if not args.every:
        print(escape(f"What the service works with stays: {stays}."))
    return 0 if done or not _systemd() else 3


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text("utf-8", "replace").startswith(_OURS)


def _show(head: str, lines: Iterable[str]) -> None:
    print(head)
    for line in lines:
        print(escape(f"  {line}"))


def _agreed(args: argparse.Namespace) -> bool:
    """Return whether it is to be done: by --yes, or by an answer."""
    if not args.yes:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            print("Nothing is done yet: --yes does it.")
            return False
        try:
            if input("Do it? [y/N]: ").strip().lower() not in {"y", "yes"}:
                return False
        except EOFError:
            return False
    if not args.user and os.geteuid() != 0:
        raise NotPossibleError("only root can do that: use sudo, or give --user")
    return True


def _systemd() -> bool:
    """Return whether there is a systemd to give orders to."""
    return _RUNNING.is_dir() and shutil.which("systemctl") is not None


def _ordered(orders: Iterable[tuple[str, ...]]) -> bool:
    """Give orders to systemd, where it runs; return whether it carried them out."""
    try:
        for order in orders if _systemd() else ():
            _run(order)
    except NotPossibleError as error:
        formatting.complain(f"batchd: {error}")
        return False
    return _systemd()


def _run(command: tuple[str, ...]) -> None:
    """Run a program of the system. Raises ``NotPossibleError``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotPossibleError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        raise NotPossibleError(f"{shlex.join(command)}: {why}")


def _of_ones_own(directory: Path, environ: Mapping[str, str]) -> _Service:
    """Return what a service of one user comes to, for the spool in a directory.

    Raises ``BatchdError``.
    """
    file = directory / trust.CONFIG
    if not trust.stands(file):
        raise UsageError(
            f"there is no spool in {directory}: {trust.spool_command(directory)} makes one"
        )
    trust.trusted(file, environ)
    # Variables of this session are none of the service's.
    settings = config.load(file, {"HOME": environ.get("HOME", "")})
    env = _own(environ) / "env"
    _insist_on_reach([*_installed(), str(directory)], system=False)
    values = {
        "ExecStart": _command(file),
        "WorkingDirectory": _plain(str(directory)),
        "EnvironmentFile": f"-{_plain(str(env))}",
        "ReadWritePaths": " ".join(_written(settings, directory)),
    }
    unit = _manager(environ) / "batchd.service"
    made = [_unit(unit, _filled("batchd-user.service", values))]
    provider = settings.providers[settings.agent.model.partition("/")[0]]
    then = ["loginctl enable-linger    # keep it running after logout"]
    if provider.api_key_file:
        if not Path(provider.api_key_file).exists():
            then.insert(0, f"put the key into {provider.api_key_file} (chmod 600)")
    elif provider.api_key_env and not env.exists():
        made.append(_File(env, f"# {provider.api_key_env}=…\n", 0o600))
        key = f"echo {provider.api_key_env}=… >> {shlex.quote(str(env))}"
        then[:0] = [key, "systemctl --user restart batchd"]
    return _Service(systemctl=("systemctl", "--user"), files=made, commands=[], then=tuple(then))


def _of_the_system(wanted: Callable[[Path], NewSpool]) -> _Service:
    """Return what a service of the system comes to. Raises ``BatchdError``."""
    file, unit = trust.SYSTEM / trust.CONFIG, _UNITS / "batchd.service"
    _insist_on_reach(_installed(), system=True)
    values = {"ExecStart": _command(file)}
    text = _filled("batchd.service", values)
    made: list[_File] = []
    then = [f'usermod -aG {_USER} "$USER"    # who is in the group drops files, reads results']
    if trust.stands(file):
        written = [*_written(config.load(file, {}), Path(_HOME))]
        if further := [path for path in written if path != _word(_HOME)]:
            text = text.replace("#ReadWritePaths=/srv/work", f"ReadWritePaths={' '.join(further)}")
        made.append(_unit(unit, text))
    else:
        asked = replace(wanted(trust.SYSTEM), place=_HOME)
        if asked.key_env or asked.key_file:
            key = Path(asked.key_file or trust.SYSTEM / f"{asked.provider}.key")
            asked = replace(asked, key_env="", key_file=asked.provider)
            credential = f"{asked.provider}:{_plain(str(key))}"
            drop_in = f"{_REMARK}\n[Service]\nLoadCredential={credential}\n"
            made.append(_unit(Path(f"{unit}.d/key.conf"), drop_in))
            if not key.exists():
                made.append(_File(key, "", 0o600))
                edit = f"sudoedit {shlex.quote(str(key))}    # the key alone"
                then[:0] = [edit, "systemctl restart batchd"]
        config.load(file, {}, draft=asked.text())  # it raises for what would not work
        made += [_unit(unit, text), _File(file, asked.text())]
    # The system's user, and their folders, where they are not there.
    missing: list[tuple[str, ...]] = []
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        places = ("--home-dir", _HOME, "--shell", "/usr/sbin/nologin")
        missing.append(("useradd", "--system", "--user-group", "--no-create-home", *places, _USER))
    for path, mode in ((_HOME, "0750"), (f"{_HOME}/{PathsSection().inbox}", "3770")):
        if not Path(path).exists():
            missing.append(("install", "-d", "-m", mode, "-o", _USER, "-g", _USER, path))
    return _Service(systemctl=("systemctl",), files=made, commands=missing, then=tuple(then))


def _of_a_timer(args: argparse.Namespace, directory: Path) -> _Service:
    """Return what drops a file into the inbox at set times. Raises ``BatchdError``."""
    when, dropped = args.every[0], Path(args.every[1]).absolute()
    config_file = (directory if args.user else trust.SYSTEM) / trust.CONFIG
    if not trust.stands(config_file):
        fix = "batchd init --systemd" if not args.user else trust.spool_command(directory)
        raise UsageError(f"there is no {config_file} yet: {fix} makes it")
    if args.user:
        trust.trusted(config_file, os.environ)
    _check_calendar(when)
    settings = config.load(config_file, {"HOME": os.environ.get("HOME", "")} if args.user else {})
    given_files.parsed(given_files.read_file(str(dropped), settings), dropped.name, settings)
    _insist_on_reach(_installed(), system=not args.user)
    name = _timer(str(dropped))
    head = f"{_REMARK}\n[Unit]\nDescription=batchd: drops {_plain(str(dropped))}"
    user = "" if args.user else f"User={_USER}\n"
    run = f"{_command(config_file, 'submit')} {_word(str(dropped), command=True)}"
    service = (
        f"{head}\nAfter=batchd.service\n[Service]\nType=oneshot\n{user}NoNewPrivileges=yes\n"
        f"ExecStart={run}\n"
    )
    timer = (
        f"{head}, {_plain(when)}\n[Timer]\nOnCalendar={_plain(when)}\n"
        "# Once, where the machine was off at the time.\nPersistent=true\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    units = _manager(os.environ) if args.user else _UNITS
    there = units / f"{name}.service"
    if _is_ours(there) and f"ExecStart={run}\n" not in there.read_text("utf-8"):
        raise NotPossibleError(
            f"{there} drops another file of that name: rename {dropped}, or take that one back with "
            "--remove"
        )
    systemctl = ("systemctl", "--user") if args.user else ("systemctl",)
    return _Service(
        systemctl=systemctl,
        files=[_unit(there, service), _unit(units / f"{name}.timer", timer)],
        commands=[],
        then=(f"{shlex.join(systemctl)} list-timers {name}.timer    # when it runs next",),
        unit=f"{name}.timer",
    )


def _timer(file: str) -> str:
    """Return the name of the units that drop a file."""
    return _TIMER + re.sub(r"[^\w.-]", "-", Path(file).stem, flags=re.ASCII)


def _check_calendar(when: str) -> None:
    """Refuse what is no time of systemd's. Raises ``UsageError``, ``NotPossibleError``."""
    if shutil.which("systemd-analyze"):
        command = ("systemd-analyze", "calendar", "--", when)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        known = not done.returncode
    else:  # what is meant for another machine
        known = bool(_SIMPLE.fullmatch(when))
    if not known or not when.isprintable():
        raise UsageError(
            f"--every {escape(when)}: it is no time that systemd knows: write '02:00', 'Mon 02:00' or "
            "another OnCalendar= of `man systemd.time`"
        )


def _command(file: Path, verb: str = "serve") -> str:
    program = _word(str(_program()), command=True)
    return f"{program} --config {_word(str(file), command=True)} {verb}"


def _written(settings: config.Config, directory: Path) -> Iterator[str]:
    """Yield the folders that the service writes in:
    the spool's, and what of the workspace lies elsewhere.
    """
    yield _word(str(directory))
    paths, workspace = settings.paths, settings.workspace
    found = (paths.inbox, paths.outbox, paths.state, workspace.root, *workspace.allow)
    for path in dict.fromkeys(found):
        if not Path(path).is_relative_to(directory):
            # Its absence must not keep the service from starting.
            yield _word(f"-{path}")


def _unit(place: Path, text: str) -> _File:
    """Return a unit, or a part of one, as a file.

    Raises ``NotPossibleError`` where another one stands there.
    """
    if os.path.lexists(place) and not _is_ours(place):
        raise NotPossibleError(
            f"{place} is there already, and not as `batchd init` writes it: move it away "
            f"first, and put changes of your own into files in {place}.d/"
        )
    return _File(place, text)


def _own(environ: Mapping[str, str]) -> Path:
    folder = trust.folders(environ)[0]
    if folder == trust.SYSTEM:
        raise NotPossibleError("this user has no home for a service of their own: set HOME")
    return folder


def _manager(environ: Mapping[str, str]) -> Path:
    """Return where a user's manager has its units:
    beside batchd's own folder, whichever variable led there.
    """
    return _own(environ).parent / "systemd" / "user"


def _filled(name: str, values: Mapping[str, str]) -> str:
    """Return a unit as it is shipped, with the package or beside it in a checkout, with other
    values of some keys, and our remark in the place of its first comment.

    Raises ``NotPossibleError``.
    """
    places: Sequence[Traversable] = (
        importlib.resources.files("batchd") / "data" / "systemd" / name,
        _CODE.parent / "systemd" / name,
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise NotPossibleError(f"this installation of batchd has no {name}: install batchd again")
    _, _, rest = found.read_text("utf-8").partition("[Unit]\n")
    for key, value in values.items():
        # As a function: a path may hold what a pattern's replacement would obey.
        rest, count = re.subn(rf"(?m)^{key}=.*$", lambda _, v=f"{key}={value}": v, rest)  # type: ignore[misc]
        assert count == 1, f"the unit says {key}= {count} times"
    return f"{_REMARK}\n[Unit]\n{rest}"


def _plain(path: str) -> str:
    """Return a path as a unit has it that takes the rest of the line.

    Raises ``NotPossibleError``.
    """
    if not path.isprintable():
        raise NotPossibleError(f"{path!a}: a unit cannot name it")
    return path.replace("%", "%%")


def _word(path: str, *, command: bool = False) -> str:
    """Return a path as one word of a unit's line; ``command``: of one that is run."""
    text = _plain(path).replace("$", "$$") if command else _plain(path)
    if re.fullmatch(r"[\w./:@%+,=~$-]+", text):
        return text
    quoted = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{quoted}"'


def _program() -> Path:
    """Return the program `batchd`, as a unit is to start it. Raises ``NotPossibleError``."""
    called = Path(sys.argv[0])
    places = [called.absolute()] if called.name == "batchd" else []
    places.append(Path(sysconfig.get_path("scripts"), "batchd"))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    raise NotPossibleError(
        f"there is no program {places[-1]}: install batchd, and call it by that name"
    )


def _insist_on_reach(paths: Iterable[str], *, system: bool) -> None:
    """Insist that a unit reaches what it is to use.

    Raises ``NotPossibleError``, with the way out.
    """
    hidden = {**_TMP, **(_HOMES if system else {})}
    page = installation.page("docs/operating.md")
    fix = "install batchd, and make the spool, in another place, such as below your home"
    if system:
        fix = (
            f"install it in /opt/batchd, as {page} shows under systemd, or take a service of your "
            "own: batchd init --systemd --user"
        )
    for path in paths:
        for place in (path, os.path.realpath(path)):
            for top, line in hidden.items():
                if place == top or place.startswith(f"{top}/"):
                    raise NotPossibleError(
                        f"the unit cannot reach {place}: it hides {top} ({line}); {fix}"
                    )


def _installed() -> list[str]:
    """Return what a unit must reach to run batchd:
    the program, its packages, and the Python below them.
    """
    return [str(_program()), str(_CODE), sys.prefix, sys.base_prefix, sys.executable]
