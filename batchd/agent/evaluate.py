"""The evaluation of a round: by a command, a schema or a judge."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchd import tokens
from batchd.agent import context, prompts, seen, tools
from batchd.children import ChildBugError, ChildDiedError, Children
from batchd.llm import ModelRequest
from batchd.records import (
    Evaluation,
    FileChanges,
    Purpose,
    Reason,
    Task,
    TaskStatus,
)
from batchd.records.models import valid
from batchd.sandbox import CommandEnd, Workplace, patiently
from batchd.taskstate import FinishedCommand, TaskState, Verdict, clipped

#: Matching one answer against one schema takes milliseconds;
#: a regular expression gone wild takes for ever.
SCHEMA_TIMEOUT_S = 10.0
#: What a model must know that sees pass what its check does not, where the check misses something.
_APART = " (a check begins with an empty HOME and /tmp)"
_MISSES = re.compile(r"HOME|/tmp/|no such file|not found|no module named|denied", re.IGNORECASE)
#: Of a judge's feedback, which goes into the conversation, so many characters are kept:
#: it is asked for two sentences.
_FEEDBACK = 8000
_SCORE = re.compile(r"^score: *([-+]?\d{1,15}(?:\.\d{1,15})?)\s*\Z", re.MULTILINE)
_FENCE = re.compile(r"\A\s*```\w*[ \t]*\r?\n(.*?)\n?```\s*\Z", re.DOTALL)


def unfenced(content: str) -> str:
    """Return the inside of an answer that is one fenced block, and any other answer as it is."""
    match = _FENCE.match(content)
    return match.group(1) if match else content


def verdict(content: str) -> Evaluation | None:
    """Return what a judge's answer says, if it is the JSON that was asked for:
    never by searching for a phrase.
    """
    try:
        return _verdict(json.loads(unfenced(content), strict=False))
    except (ValueError, RecursionError):
        return None


def _verdict(value: Any) -> Evaluation | None:
    """Raises ``RecursionError`` for feedback that is nested too deep to be written."""
    if not isinstance(value, dict) or not isinstance(value.get("done"), bool):
        return None
    # Only `done` decides; judges that have nothing to say write null,
    # an empty list or nothing at all.
    feedback = value.get("feedback") or ""
    if not isinstance(feedback, str):
        feedback = json.dumps(feedback, ensure_ascii=False)
    return Evaluation(by="judge", done=value["done"], feedback=clipped(valid(feedback), _FEEDBACK))


async def check(
    place: Workplace, command: str, timeout_s: float, most: int | None = None, *, apart: bool
) -> tuple[Evaluation, CommandEnd]:
    """Run the task's own check: exit 0 passes, unless a limit of the sandbox stood in its way;
    at most ``most`` bytes of its output are the feedback.

    ``apart``: of what the task's commands left, it finds the directory alone.
    Also returns how the command ended.
    """
    async with place.apart() if apart else contextlib.nullcontext(place) as where:
        ran = await where.shell(command, timeout_s=timeout_s, at_most=most)
    end = f"ran out of its {timeout_s:g} s" if ran.timed_out else f"exit code {ran.exit_code}"
    if apart and _MISSES.search(ran.output):
        end += _APART
    if ran.excess:
        end += f" ({ran.excess})"
    # A check that could not write what it wanted,
    # or was killed for what it took, has compared nothing.
    done = ran.exit_code == 0 and not ran.timed_out and not ran.excess
    feedback = f"`{command}`: {end}\n{ran.output}".strip()
    return Evaluation(by="check", done=done, feedback="" if done else feedback), ran


def score(output: str) -> float | None:
    """Return the number of a check's last line, ``score: 0.83``; None: it has none."""
    found = _SCORE.search(output)
    return float(found[1]) if found else None


async def at_the_end(place: Workplace, verdict: Verdict) -> Verdict:
    """Return how a task ends: not well where it holds more of the disk than it may.

    Its last command may have been over before its use was measured.
    """
    if verdict.status is not TaskStatus.COMPLETED or not (full := await place.full()):
        return verdict
    message = f"at its end, {full}; its directory stays as it is"
    return Verdict.of(TaskStatus.ERROR, Reason.DISK, message)


async def output_schema(schema: Mapping[str, Any], answer: str) -> Evaluation:
    """Hold the final answer to the task's schema, in a child that can be killed."""
    job = json.dumps({"schema": schema, "answer": unfenced(answer)}).encode()
    children = Children("batchd.agent.schemachild")
    try:
        said = await patiently(lambda: children.ask(job, SCHEMA_TIMEOUT_S))
        feedback = said.decode(errors="replace").strip()
    except TimeoutError:
        feedback = f"the answer could not be validated within {SCHEMA_TIMEOUT_S:g} s"
    except (ChildDiedError, ChildBugError):
        why = "the validator failed, or ran out of its limits"
        feedback = f"the answer could not be validated: {why}"
    finally:
        await children.close()
    return Evaluation(by="output_schema", done=not feedback, feedback=feedback)


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
    commands = state.commands[-_MAX_COMMANDS:]
    ran = [f"- [{_outcome(command)}] {tools.named(command.call)}" for command in commands]
    evidence = (
        task.first_prompt,
        files.left,
        files.contents or "(not shown)",
        "\n".join(ran) or "- none",
        state.answer.strip() or "(empty)",
    )
    messages = prompts.judge(*context.fitted(evidence, context.judged(setup)))
    asked = tokens.count_messages(messages)
    return asked, ModelRequest(
        messages=messages,
        tools=(),
        max_output_tokens=min(most, context.room(asked, setup)),
        schema=prompts.JUDGE_SCHEMA,
    )


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
