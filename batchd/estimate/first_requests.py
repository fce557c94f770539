"""The first request of every task, counted as its agent will count it:
system prompt, tools, first prompt.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence

from batchd.agent import context, prompts, seen
from batchd.errors import NotPossibleError, SandboxError
from batchd.events import TaskStarted, Terms
from batchd.records import ModelSetup, SandboxPolicy, Task
from batchd.sandbox import Sandbox
from batchd.taskstate import TaskState, apply


class FirstRequests:
    """The counter of first requests, with what the sandbox of each task will say of itself."""

    def __init__(self, policy: SandboxPolicy, *, agents_md: bool) -> None:
        """``agents_md``: whether what the directories' owners say is sent with them."""
        self._policy = policy
        self._agents_md = agents_md
        self._sandbox: Sandbox | None = None
        self._facts: dict[object, str] = {}
        #: Why the line of facts about the sandbox is not counted; empty: it is.
        self.missing = ""

    async def count(self, tasks: Sequence[tuple[Task, ModelSetup, str]]) -> list[int]:
        """Return the tokens, as tiktoken counts them, of the first request of each task;
        its model and future directory are given too.
        """
        try:
            self._sandbox = Sandbox(self._policy)
        except NotPossibleError as error:
            self.missing = str(error)
        with tempfile.TemporaryDirectory(prefix="batchd-") as folder:
            os.chmod(folder, 0o755)  # noqa: S103 (no other coroutine waits; the user who runs commands must get through)
            return [
                self._counted(task, setup, await self._described(task, f"{folder}/task", directory))
                for task, setup, directory in tasks
            ]

    async def _described(self, task: Task, trial: str, directory: str) -> str:
        """Return the facts about a task's sandbox;
        a fresh directory is tried elsewhere than where it will be.
        """
        # What it says of a directory depends on the files that the prompt names.
        names = [name for name in seen.named(task.first_prompt) if "." in name or "/" in name]
        key = (task.dir, task.network, task.env.get("PATH"), *(names if task.dir else ()))
        if key not in self._facts:
            self._facts[key] = await self._asked(task, trial)
        return self._facts[key].replace(trial, directory)

    async def _asked(self, task: Task, trial: str) -> str:
        if self._sandbox is None:
            return ""
        # A directory that is yet to be made has the facts of a fresh one.
        for path in filter(None, (task.dir, trial)):
            with contextlib.suppress(SandboxError):
                async with await self._sandbox.open(
                    path,
                    fresh=path == trial,
                    network=task.network,
                    env=task.env,
                    tmp=f"{trial}-tmp",
                ) as place:
                    said = await place.facts()
                    if path == trial:
                        return said
                    files = place.files()
                    says = await context.words(place, files) if self._agents_md else ""
                    opening, _ = await seen.opening(place, files, task.first_prompt)
                    return "\n\n".join(filter(None, (said, says, opening)))
        self.missing = "the sandbox could not be asked"
        return ""

    def _counted(self, task: Task, setup: ModelSetup, facts: str) -> int:
        stays = self._policy.keep_processes and self._policy.backend != "none"
        if task.origin is not None and task.origin.kind == "clone":
            facts += prompts.CLONED
        system = prompts.system(task, facts, text=setup.tools == "text", stays=stays)
        terms = Terms(model=setup, judge=setup, system_prompt=system, keep_processes=stays)
        state = TaskState(first_prompt=task.first_prompt)
        return context.size(apply(state, TaskStarted(at=0.0, terms=terms)))
