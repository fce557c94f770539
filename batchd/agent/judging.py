"""The judge's prompt: the task, the answer,
the commands with their ends, and the files that were left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchd import tokens
from batchd.agent import context, prompts, seen, tools
from batchd.llm import ModelRequest
from batchd.records import FileChanges, FileStamp, Message, Purpose, Task
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
    #: What stands in the small ones.
    contents: str = ""


def changed(state: TaskState, place: Workplace) -> JudgedFiles:
    """Return the files that a task has made or changed.

    Blocks while it looks through the directory.
    """
    before = state.terms.files if state.terms else None
    return JudgedFiles(_sizes(before, place.files()))


async def read(files: JudgedFiles, place: Workplace, timeout_s: float) -> JudgedFiles:
    """Return the same with what stands in the small ones. Raises ``SandboxError``."""
    return JudgedFiles(files.changed, await seen.contents(place, files.changed, timeout_s))


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
    ran = [(tools.named(command.call), _outcome(command)) for command in commands]
    evidence = prompts.evidence(task, state.answer, ran, files.changed, files.contents)
    budget = context.judged(state.setup(Purpose.JUDGE))
    return prompts.judge(*context.fitted(evidence, budget))


def _sizes(
    before: Mapping[str, FileStamp] | None, after: Mapping[str, FileStamp] | None
) -> tuple[tuple[str, int], ...]:
    if before is None or after is None:
        return (("(too many files to list)", 0),)
    changes = FileChanges.between(before, after)
    paths = (*changes.created, *changes.modified)[:_MAX_FILES]
    return tuple((path, after[path][0]) for path in paths)


def _outcome(command: FinishedCommand) -> str:
    """Return how a tool call ended."""
    if command.asked_input:
        return f"exit code {command.exit_code}: it asked for input, and there is no keyboard here"
    if command.asked_screen:
        return f"exit code {command.exit_code}: it wanted a screen, and there is none here"
    return "done" if command.exit_code is None else f"exit code {command.exit_code}"
