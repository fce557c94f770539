"""The whole way through a real daemon:
what a hostile model says and does, and what becomes of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacking import NOBODY_ID
from loglines import logged
from standin.record import save

from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.records import Answer, ToolCall
from tests import conftest
from tests.conftest import Spool, stand_in


@dataclass(frozen=True)
class Camp(Spool):
    """A spool whose daemon runs as root or as an ordinary user, in a folder of that user."""

    prefix: tuple[str, ...] = ()
    more: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path, prefix: tuple[str, ...], base_url: str) -> Camp:
        """Make the folders and a configuration with a model of two steps."""
        camp = cls(folder, prefix)
        camp.configure(base_url, "steps-2")
        for name in ("inbox", "outbox"):
            camp.own(folder / name)
        return camp

    def own(self, path: Path, text: str | None = None) -> Path:
        """Make a folder, or a file, that belongs to the user who runs batchd;
        and what is missing above it.
        """
        if path.parent != self.folder:
            self.own(path.parent)
        if text is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)
        if self.prefix and os.geteuid() == 0:
            os.chown(path, NOBODY_ID, NOBODY_ID)
        return path

    def workplace(self, path: Path) -> Path:
        """Make a directory that a task may name: it belongs to somebody who is not root."""
        self.own(path)
        if os.geteuid() == 0:
            os.chown(path, NOBODY_ID, NOBODY_ID)
        return path

    def configure(self, base_url: str, model: str, more: str = "") -> None:
        """Rewrite the configuration."""
        text = conftest.CONFIG.format(base_url=base_url, model=model)
        (self.folder / "config.toml").write_text(text + more)

    @property
    def environment(self) -> dict[str, str]:
        """Somebody's own settings."""
        return {**super().environment, "PYTHONDONTWRITEBYTECODE": "1", **self.more}

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command line of the user who runs batchd."""
        return [*self.prefix, *super().command(*arguments)]

    @contextlib.contextmanager
    def answering(
        self,
        talks: Mapping[str, Sequence[Answer]],
        config: str = "",
        /,
        *server: str,
        done: bool = True,
        count: bool = False,
    ) -> Iterator[None]:
        """Run a model that answers each prompt like that, and judges that it is ``done``;
        and a daemon that asks it.

        With ``count`` its usage is what it has said, or what an answer's own usage says.
        """
        folder = self.folder / "talks"
        folder.mkdir(exist_ok=True)
        for prompt, answers in talks.items():
            said = {"answers": tuple(answers), "judge": (RecordedVerdict(done=done),)}
            save(folder, Recording(first_prompt=prompt, model="demo", **said))
        with stand_in("--recordings", str(folder), *server, count=count) as base_url:
            self.configure(base_url, "demo", config)
            with self.serving():
                yield

    def play(
        self, tasks: Sequence[Mapping[str, Any]], name: str = "batch", **batch: Any
    ) -> dict[str, Any]:
        """Submit a batch, and return its results by task once all is over."""
        done = self.batchd("submit", self.write(f"{name}.json", tasks, **batch))
        assert done.returncode == 0, done.stderr
        folder = self.folder / "outbox" / name
        self.eventually((folder / "summary.json").exists)
        lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
        return {result["task"]: result for result in map(json.loads, lines)}

    def lines(self) -> list[dict[str, Any]]:
        """Return the daemon's log."""
        return logged(self.folder / "daemon.log")


def says(text: str) -> Answer:
    """Return an answer that is a text."""
    return Answer(content=text)


def does(command: str, tool: str = "shell", **arguments: Any) -> Answer:
    """Return an answer that calls a tool."""
    given = {"command": command} if tool == "shell" else {"path": command, **arguments}
    call = ToolCall("call", tool, json.dumps(given))
    return Answer(content="", tool_calls=(call,), finish_reason="tool_calls")
