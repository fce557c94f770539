"""Commands that want too much, through the real door: how each ended, limits included."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacking import AS_ROOT, DRIVERS, Attack
from patience import PATIENCE_S

from batchd import trees


@dataclass(frozen=True)
class End:
    """How a command ended."""

    exit_code: int | None
    output: str
    excess: str
    killed: bool
    seconds: float


class Apart(str):
    """A command that runs as a check does."""

    __slots__ = ()


class Limited:
    """A task's commands, one after another in the same place, which has a /tmp that lasts."""

    def __init__(self, python: Sequence[str], source: Path, folder: Path) -> None:
        self._python = python
        self._source = source
        #: The task's directory.
        self.folder = folder / "task"
        #: Its /tmp.
        self.tmp = folder / "state" / "tmp" / "batch.001"
        self.facts = ""

    def run(
        self,
        *commands: str | None,
        policy: Mapping[str, Any] | None = None,
        fresh: bool = True,
        timeout_s: float = PATIENCE_S,
    ) -> list[End]:
        """Run each in a shell; None: the place is closed and reopened."""
        asked = {
            "folder": str(self.folder),
            "tmp": str(self.tmp),
            "fresh": fresh,
            "policy": policy or {},
            "timeout_s": timeout_s,
            "commands": [_written(command) for command in commands],
        }
        ended = subprocess.run(
            [*self._python, DRIVERS / "limited.py"],
            input=json.dumps(asked).encode(),
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
            cwd=self._source,
            env={**os.environ, "PYTHONPATH": str(self._source)},
        )
        assert ended.returncode == 0, ended.stderr.decode()
        ends, self.facts = json.loads(ended.stdout)
        return [End(*end) for end in ends]

    def drive(self, name: str, *arguments: Path) -> None:
        """Run a driver as batchd would be run: as whom, with which Python."""
        subprocess.run(
            [*self._python, DRIVERS / name, *arguments],
            check=True,
            env={**os.environ, "PYTHONPATH": str(self._source)},
        )


def _written(command: str | None) -> object:
    """Return a command as the driver reads it."""
    if command is None:
        return None
    words = ["bash", "-c", command]
    return {"apart": words} if isinstance(command, Apart) else words


@contextmanager
def place(attack: Attack, source: Path) -> Iterator[Limited]:
    """Give commands of one task, with a state directory
    that is private to the user that batchd runs as.
    """
    state = attack.folder.parent / "state"
    state.mkdir(mode=0o700)
    if AS_ROOT:
        owner = state.parent.stat()
        os.chown(state, owner.st_uid, owner.st_gid)
    yield Limited(attack.python_command, source, attack.folder.parent)
    trees.remove(attack.folder)
    trees.remove(state)
