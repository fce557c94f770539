"""A machine with a real systemd, seen from outside: see ``boot``, which makes it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patience import PATIENCE_S, until

ROOT = Path(__file__).parents[2]
_CGROUPS = Path("/sys/fs/cgroup")
#: Where version 1 is still in use, version 2 stands beside it.
_UNIFIED = _CGROUPS / "unified"
#: The machine's environment is none of ours, but pip must find its way out as it does here.
_KEPT = ("PIP_", "HTTP", "http", "NO_PROXY", "no_proxy", "SSL_CERT", "PATH")


@dataclass(frozen=True)
class Machine:
    """A machine that is up."""

    scratch: Path
    cgroup: Path

    @property
    def leader(self) -> int:
        """Its systemd, by the number that it has outside."""
        return int((self.scratch / "leader").read_text())

    def path(self, path: str) -> Path:
        """Return where a file of the machine lies, as seen from here."""
        return Path(f"/proc/{self.leader}/root{path}")

    def write(self, path: str, text: str) -> None:
        """Write a file, as root."""
        there = self.path(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)

    def try_(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root, to its end, whatever that is."""
        inside = ("nsenter", "-t", str(self.leader), "-m", "-p", "-C", "-u", "-i", "--wdns=/")
        kept = {k: v for k, v in os.environ.items() if k.startswith(_KEPT)}
        return subprocess.run(
            [*inside, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**kept, "HOME": "/root", "LANG": "C.UTF-8"},
        )

    def run(self, *command: str) -> str:
        """Run a command in it, which must succeed; return what it says."""
        done = self.try_(*command)
        said = f"{shlex.join(command)}:\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{said}\n{self.last_words()}"
        return done.stdout

    def shell(self, script: str, *prefix: str) -> str:
        """Run lines of a shell, each of which must succeed."""
        return self.run(*prefix, "bash", "-euo", "pipefail", "-c", script)

    def unplug(self) -> None:
        """Pull the plug. The machine boots again by itself."""
        before = self.leader
        os.kill(before, 9)
        until(lambda: self.is_up(after=before), self.last_words)

    def is_up(self, after: int = 0) -> bool:
        """Return whether it has booted, with another systemd than ``after``."""
        try:
            if self.leader == after:
                return False
            state = self.try_("systemctl", "is-system-running", "--wait").stdout.strip()
        except FileNotFoundError:
            return False
        return state in {"running", "degraded"}

    def last_words(self) -> str:
        """Return the end of what it said, on its console and in its journal."""
        said = (self.scratch / "console").read_text("utf-8", "replace")[-3000:]
        with contextlib.suppress(FileNotFoundError):
            said += self.try_("journalctl", "-n", "40", "--no-pager").stdout
        return said


@dataclass(frozen=True)
class Service:
    """A unit of the machine: of the system, or of a user's manager."""

    machine: Machine
    name: str = "batchd.service"
    #: How to reach the manager that runs it, and where in the tree of cgroups it does.
    systemctl: tuple[str, ...] = ("systemctl",)
    slice: str = "system.slice"

    def control(self, verb: str, *more: str) -> str:
        """Say something to the manager about the unit."""
        return self.machine.run(*self.systemctl, verb, self.name, *more)

    def show(self, key: str) -> str:
        """Return a property."""
        return self.control("show", "-P", key).strip()

    @property
    def main(self) -> int:
        """The daemon, by the number that it has outside; 0: it does not run."""
        inside = self.show("MainPID")
        for pid in self.processes():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if (numbers := _field(status, "NSpid")) and numbers.split()[-1] == inside:
                    return pid
        return 0

    def processes(self) -> dict[int, str]:
        """Return all that runs in the unit's cgroup,
        by their numbers outside, with their command lines.
        """
        found = {}
        for file in self.machine.cgroup.rglob("cgroup.procs"):
            if not {self.slice, self.name} <= set(file.parts):
                continue
            with contextlib.suppress(OSError):
                for pid in map(int, file.read_text().split()):
                    # One that has ended meanwhile must not hide those behind it.
                    with contextlib.suppress(OSError):
                        command = Path(f"/proc/{pid}/cmdline").read_bytes()
                        found[pid] = command.replace(b"\0", b" ").decode("utf-8", "replace")
        return found

    def orphans(self) -> dict[int, str]:
        """Return what runs in the cgroup and does not descend from the daemon."""
        parents = {}
        for pid in (everything := self.processes()):
            with contextlib.suppress(OSError):
                parents[pid] = int(_field(Path(f"/proc/{pid}/status").read_text(), "PPid"))
        family = {self.main}
        for _ in parents:
            family |= {pid for pid, parent in parents.items() if parent in family}
        return {pid: everything[pid] for pid in parents if pid not in family}

    def journal(self, *options: str) -> list[dict[str, Any]]:
        """Return the unit's own lines, as systemd's fields."""
        key = "_SYSTEMD_UNIT" if self.slice == "system.slice" else "_SYSTEMD_USER_UNIT"
        lines = self.machine.run(
            "journalctl", "-o", "json", "--all", f"{key}={self.name}", *options
        )
        return [json.loads(line) for line in lines.splitlines()]

    def logged(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """Return the daemon's lines about something, as its own fields."""
        wanted = {"event": event, **fields}.items()
        said = [line["MESSAGE"] for line in self.journal()]
        lines = [json.loads(text) for text in said if text.startswith('{"timestamp":')]
        return [line for line in lines if wanted <= line.items()]


@contextlib.contextmanager
def booted(scratch: Path) -> Iterator[Machine]:
    """Boot a machine. It ends with the block, and with this process however that ends."""
    source = _source(scratch)
    namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--propagation=private")
    program = Path(__file__).with_name("boot")
    with (
        _cgroup() as cgroup,
        (scratch / "console").open("wb") as console,
        subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=KILL",
                "unshare",
                *namespaces,
                program,
                scratch,
                cgroup,
                source,
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        ) as keeper,
    ):
        machine = Machine(scratch, cgroup)
        try:
            until(lambda: keeper.poll() is not None or machine.is_up(), machine.last_words)
            assert keeper.poll() is None, machine.last_words()
            yield machine
        finally:
            keeper.kill()


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Give a cgroup that is empty, and gone at the end."""
    parent = _UNIFIED if (_UNIFIED / "cgroup.procs").exists() else _CGROUPS
    cgroup = parent / f"batchd-test-{secrets.token_hex(4)}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        ended = cgroup / "cgroup.events"
        until(lambda: "populated 0" in ended.read_text(), lambda: "its processes do not end")
        for group in sorted(cgroup.rglob("*/"), reverse=True):
            group.rmdir()
        cgroup.rmdir()


def _source(scratch: Path) -> Path:
    """Return a repository of root's with all that is in this working tree,
    committed here or not.
    """
    source = scratch / "source"
    git = ("git", "-c", "safe.directory=*", "-C")
    listed = [*git, str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, stdout=subprocess.PIPE, check=True).stdout
    script = """
        mkdir "$2"
        (cd "$1" && xargs -0 cp --parents -t "$2" 2>/dev/null || true)
        cd "$2"
        git init -q
        git add -A
        git -c user.name=test -c user.email=test@localhost commit -qm 'The working tree'
    """
    words = ["bash", "-euc", script, "bash", str(ROOT), str(source)]
    subprocess.run(words, input=names, check=True)
    return source


def _field(status: str, name: str) -> str:
    """Return a field of /proc/PID/status."""
    return next((x.partition(":")[2] for x in status.splitlines() if x.startswith(f"{name}:")), "")
