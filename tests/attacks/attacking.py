"""Who attacks, and through which door: single commands in sandboxes,
of a batchd that runs as root or as an ordinary user.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

HERE = Path(__file__).parents[2]
SECRET = "sk-secret-of-the-operator-4711"
AS_ROOT = os.geteuid() == 0
NOBODY_ID = 65534
NOBODY = ["setpriv", f"--reuid={NOBODY_ID}", f"--regid={NOBODY_ID}", "--clear-groups", "--"]

#: What is let loose inside, each in a file of its own.
PAYLOADS = Path(__file__).with_name("payloads")
#: What makes batchd let it in: run by batchd's Python, as the user that batchd runs as.
DRIVERS = Path(__file__).with_name("drivers")
_DRIVER = str(DRIVERS / "commands.py")


def payload(name: str, *arguments: object) -> list[str]:
    """Return a command that runs a payload, in Python or in a shell, inside:
    its file is not there.
    """
    text = (PAYLOADS / name).read_text("utf-8")
    program = ["python3", "-c", text] if name.endswith(".py") else ["bash", "-c", text, name]
    return [*program, *map(str, arguments)]


def shell(name: str, *arguments: object) -> str:
    """Return a line for a shell that runs a payload."""
    return shlex.join(payload(name, *arguments))


def ordinary_user() -> list[str]:
    """Return what runs a program as somebody without rights,
    who can reach this Python and this checkout.

    Both may lie where only root may go.
    Then it sees other folders in the place of those that are locked.
    """
    if not AS_ROOT:
        return []
    wanted = sorted({Path(p).resolve() for p in (sys.base_prefix, sys.prefix, HERE)})
    held = {path: f"/mnt/{n}" for n, path in enumerate(wanted) if _locked(path)}
    if not held:
        return NOBODY
    lines = ["mount -t tmpfs none /mnt"]
    lines += [f"mkdir {hold} && mount --bind {shlex.quote(str(p))} {hold}" for p, hold in held.items()]  # fmt: skip
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(p))}" for p in {_locked(p) for p in held}]  # fmt: skip
    lines += [f"mkdir -p {(there := shlex.quote(str(p)))} && mount --bind {hold} {there}" for p, hold in held.items()]  # fmt: skip
    lines += ["umount -l /mnt", 'exec "$@"']
    return ["unshare", "-m", "sh", "-ec", "\n".join(lines), "sh", *NOBODY]


def _locked(path: Path) -> Path | None:
    """Return the first folder on the way to a path that not everybody may enter."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)


class Attack:
    """Commands in sandboxes of a batchd of its own, with a key in its environment."""

    def __init__(self, python: Sequence[str], folder: Path) -> None:
        #: What runs batchd: as whom, and with which Python.
        self.python_command = python
        #: The task's directory, fresh.
        self.folder = folder / "task"
        #: Set in the environment of batchd.
        self.environment: dict[str, str] = {}

    def run(
        self,
        *commands: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        policy: Mapping[str, Any] | None = None,
        network: bool | Sequence[str] = False,
        timeout_s: float = PATIENCE_S,
        descriptors: Sequence[int] = (),
    ) -> list[tuple[int | None, str, bool, float]]:
        """Run each (a string in a shell) and return exit code,
        output, whether time ran out, and seconds.
        """
        asked = self._asked(commands, env, policy, network, timeout_s)
        ended = subprocess.run(
            [*self.python_command, _DRIVER],
            input=json.dumps(asked).encode(),
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
            cwd="/",
            env=self.surroundings,
            pass_fds=descriptors,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return [tuple(end) for end in json.loads(ended.stdout)]

    def begin(
        self,
        *commands: str,
        env: Mapping[str, str] | None = None,
        policy: Mapping[str, Any] | None = None,
        timeout_s: float = PATIENCE_S,
        stderr: int | None = None,
    ) -> subprocess.Popen[str]:
        """Begin to do so, and return the batchd: it prints the same, as JSON."""
        asked = self._asked(commands, env, policy, network=False, timeout_s=timeout_s)
        with tempfile.TemporaryFile("w+") as file:
            json.dump(asked, file)
            file.seek(0)
            command = [*self.python_command, _DRIVER]
            return subprocess.Popen(
                command,
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd="/",
                env=self.surroundings,
            )

    def _asked(
        self,
        commands: Sequence[str | Sequence[str]],
        env: Mapping[str, str] | None,
        policy: Mapping[str, Any] | None,
        network: bool | Sequence[str],
        timeout_s: float,
    ) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "env": env or {},
            "policy": policy or {},
            "network": network,
            "timeout_s": timeout_s,
            "commands": [["bash", "-c", c] if isinstance(c, str) else c for c in commands],
        }

    @property
    def surroundings(self) -> dict[str, str]:
        """The environment of batchd, with a key in it."""
        mine = {"OPENAI_API_KEY": SECRET, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **mine, **self.environment}

    def ran(self, name: str, *arguments: object, **options: Any) -> str:
        """Run a payload inside; it must end well; return what it printed."""
        [(exit_code, output, _, _)] = self.run(payload(name, *arguments), **options)
        assert exit_code == 0, output
        return output


def living_in(namespace: str) -> list[int]:
    """Return the processes in a process namespace, as ``/proc/self/ns/pid`` names it:
    nothing can hide there.
    """
    return [pid for pid, name in _namespaces() if name == namespace]


def _namespaces() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = str((path / "ns/pid").readlink())
            dead = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not dead:
            yield int(path.name), name
