"""Hostile commands through the real door, of a batchd that runs as root or as an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
SECRET = "sk-secret-of-the-operator-4711"
AS_ROOT = os.geteuid() == 0
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

#: Runs commands in a fresh sandbox, as JSON tells it, and tells how they ended.
DRIVER = """
import asyncio, json, os, sys
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox
asked = json.load(sys.stdin)
def listed(given):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
async def main():
    sandbox = Sandbox(SandboxPolicy(**listed(asked["policy"])))
    network = listed(asked)["network"]
    opening = sandbox.open(asked["folder"], fresh=True, network=network, env=asked["env"])
    with await opening as place:
        ends = [await place.run(argv, timeout_s=asked["timeout_s"]) for argv in asked["commands"]]
        print(json.dumps([[e.exit_code, e.output, e.timed_out, e.seconds] for e in ends]))
asyncio.run(main())
"""


class Attack:
    """Commands in sandboxes of a batchd of its own, with a key in its environment."""

    def __init__(self, python: Sequence[str], source: Path, folder: Path) -> None:
        #: What runs batchd: as whom, and with which Python.
        self.python_command = python
        self._source = source
        #: The task's directory, fresh.
        self.folder = folder / "task"

    def run(
        self,
        *commands: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        policy: Mapping[str, Any] | None = None,
        network: bool | Sequence[str] = False,
        timeout_s: float = 20.0,
        descriptors: Sequence[int] = (),
    ) -> list[tuple[int | None, str, bool, float]]:
        """Run each (a string in a shell) and return exit code, output, whether time ran out, and seconds."""
        asked = {
            "folder": str(self.folder),
            "env": env or {},
            "policy": policy or {},
            "network": network,
            "timeout_s": timeout_s,
            "commands": [["bash", "-c", c] if isinstance(c, str) else c for c in commands],
        }
        ended = subprocess.run(
            [*self.python_command, "-c", DRIVER],
            input=json.dumps(asked).encode(),
            capture_output=True,
            check=False,
            timeout=100,
            cwd=self._source,
            env={**os.environ, "OPENAI_API_KEY": SECRET, "PYTHONPATH": str(self._source)},
            pass_fds=descriptors,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return [tuple(end) for end in json.loads(ended.stdout)]

    def python(self, code: str, **options: Any) -> str:
        """Run Python code inside; it must end well; return what it printed."""
        [(exit_code, output, _, _)] = self.run(["python3", "-c", code], **options)
        assert exit_code == 0, output
        return output
