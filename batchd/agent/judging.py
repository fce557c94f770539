"""The judge's prompt: the task, the answer,
the commands with their ends, and the files that were left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchd import tokens
from batchd.agent import context, prompts, seen, tools
from batchd.llm import ModelRequest
from batchd.records import FileChanges, Message, Purpose, Task
from batchd.sandbox import Workplace
from batchd.taskstate import FinishedCommand, TaskState

#: What it is shown at most: the newest commands, the first files.
_MAX_COMMANDS = 40
_MAX_FILES = 100


@dataclass(frozen=True, slots=True)
class JudgedFiles:
    """The files that a task has made or changed."""

    #: By path, with their sizes in bytes.
    changed: tuple[tuple[str, int], ...]
    #: What lies in the directory, in words.
    left: str
    #: What stands in the small ones.
    contents: str = ""


def changed(state: TaskState, place: Workplace) -> JudgedFiles:
    """Return the files that a task has made or changed.

    Blocks while it looks through the directory.
    """
    before, after = state.terms.files if state.terms else None, place.files()
    if before is None or after is None:
        return JudgedFiles((), "(the files cannot be listed)")
    changes = FileChanges.between(before, after)
    paths = (*changes.created, *changes.modified)[:_MAX_FILES]
    lines = [f"- {prompts.plain(path)} ({after[path][0]} bytes)" for path in paths]
    lines += [f"- {prompts.plain(path)} is deleted" for path in changes.deleted[:_MAX_FILES]]
    if not lines:
        lines = [f"- none: its {len(after)} files are as they were" if after else "- none: the directory is empty"]  # fmt: skip
    return JudgedFiles(tuple((path, after[path][0]) for path in paths), "\n".join(lines))


async def read(files: JudgedFiles, place: Workplace, timeout_s: float) -> JudgedFiles:
    """Return the same with what stands in the small ones. Raises ``SandboxError``."""
    return replace(files, contents=await seen.contents(place, files.changed, timeout_s))


def request(
    task: Task, state: TaskState, files: JudgedFiles, most: int
) -> tuple[int, ModelRequest]:
    """Return how long the question is, in tokens, and the question,
    of at most ``most`` tokens of output.

    Blocks while it counts.
    """
    setup = state.setup(Purpose.JUDGE)
    messages = _messages(task, state, files)
    asked = tokens.count_messages(messages)
    room = context.room(asked, setup)
    return asked, ModelRequest(
        messages=messages,
        tools=(),
        max_output_tokens=min(most, room),
        schema=prompts.JUDGE_SCHEMA,
    )


def _messages(task: Task, state: TaskState, files: JudgedFiles) -> tuple[Message, ...]:
    commands = state.commands[-_MAX_COMMANDS:]
    ran = [f"- [{_outcome(command)}] {tools.named(command.call)}" for command in commands]
    evidence = (
        task.first_prompt,
        files.left,
        files.contents or "(not shown)",
        "\n".join(ran) or "- none",
        state.answer.strip() or "(empty)",
    )
    budget = context.judged(state.setup(Purpose.JUDGE))
    return prompts.judge(*context.fitted(evidence, budget))


def _outcome(command: FinishedCommand) -> str:
    """Return how a tool call ended."""
    if command.timed_out:
        return "killed at its time limit"
    if command.asked_input:
        return f"exit code {command.exit_code}: it asked for input, and there is no keyboard here"
    if command.asked_screen:
        return f"exit code {command.exit_code}: it wanted a screen, and there is none here"
    silent = ", no output" if command.silent else ""
    return "done" if command.exit_code is None else f"exit code {command.exit_code}{silent}"
