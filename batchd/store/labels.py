"""Labels of a task, as the store keeps them beyond the task's text: tags, evaluation, length."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from batchd.records import Task


class TaskLabels(NamedTuple):
    """Three columns of a task's row."""

    #: Its tags as JSON, sorted and each once; empty: it has none. Equal sets are equal texts.
    tags: str
    #: Who evaluates its rounds, in order: words of ``check``,
    #: ``output_schema`` and ``judge``, or ``none``.
    evaluation: str
    #: How long the user's own prompts are, in characters.
    prompt_chars: int


def of(task: Task) -> TaskLabels:
    """Return the labels of a task."""
    asked = {
        "check": task.check,
        "output_schema": task.output_schema is not None,
        "judge": task.evaluator == "judge",
    }
    return TaskLabels(
        tags=msgspec.json.encode(sorted(set(task.tags))).decode() if task.tags else "",
        evaluation=" ".join(by for by, wanted in asked.items() if wanted) or "none",
        prompt_chars=len(task.first_prompt) + len(task.system_prompt),
    )
