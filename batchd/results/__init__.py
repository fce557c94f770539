"""Results: a task's state becomes the bytes of its result file, a batch the bytes of its summary.

Pure, so that the same events always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any, get_args

import msgspec
from msgspec.structs import replace

from batchd import decoders, formats
from batchd.errors import Problem
from batchd.events import CallAnswered, Event
from batchd.formats import (
    CostV1,
    FilesV1,
    ProblemV1,
    ResultV1,
    RunsCodeV1,
    StatusV1,
    SummaryTaskV1,
    SummaryV1,
    TimingV1,
)
from batchd.log import escape_json
from batchd.records import (
    Batch,
    ErrorInfo,
    FileChanges,
    FileStamp,
    Patch,
    Purpose,
    Reason,
    Tally,
    Task,
    TaskStatus,
    Trigger,
    outcome,
)
from batchd.records.policy import changed, show
from batchd.results import figures
from batchd.taskstate import TaskState

#: The format of results.
SCHEMA = "batchd/result/1"
_MAX_FILES_LISTED = 1000
_LOST = "the machine started again while it was at work: files from before that may be empty, old or gone"


_RESULT: msgspec.json.Decoder[ResultV1] = decoders.decoder(ResultV1)


def result(
    batch: Batch,
    task: Task,
    state: TaskState,
    *,
    status: TaskStatus,
    reason: Reason | None,
    error: ErrorInfo | None,
    queued_at: float,
    finished_at: float,
    attempts: int,
    files: Mapping[str, FileStamp] | None,
    triggers: Mapping[str, Trigger] | None = None,
    patch: Patch | None = None,
    unsynced: str = "",
) -> str:
    """Return the text of a task's result file.

    ``files`` and ``triggers``: its directory as it is now. ``unsynced``: why ``files`` are not on
    the disk; empty: they are.
    """
    state = state.settled()
    before = state.terms.files if state.terms else None
    changes = None
    if before is not None and files is not None:
        changes = _listed(FileChanges.between(before, files))
    risks = [_LOST] if state.files_lost else []
    risks += [f"its files may not be on the disk: {unsynced}"] if unsynced else []
    started = state.started_at or None
    value = ResultV1(
        schema=SCHEMA,
        batch=batch.name,
        task=task.id,
        status=status,
        reason=reason,
        first_prompt=task.first_prompt,
        dir=batch.directory(task),
        model=task.model,
        service_tier=task.service_tier,
        answer=state.answer,
        iterations=state.iterations,
        evaluation=state.evaluation,
        score=state.score,
        flaky=state.flaky,
        usage=figures.used(state.spend, state.unsettled_calls),
        cost=figures.paid(state),
        timing=TimingV1(
            queued_at=timestamp(queued_at),
            started_at=timestamp(started) if started else None,
            finished_at=timestamp(finished_at),
            queued_s=_seconds((started or finished_at) - queued_at),
            parked_s=_seconds(state.parked_time(finished_at)),
            waited_s=_seconds(state.waited_s),
            # Up to the last event: since then no work was done, or only that of ending.
            run_s=_seconds(state.run_s),
            model_s=_seconds(state.model_s),
            tool_s=_seconds(state.tool_s),
        ),
        attempts=attempts,
        files=changes,
        at_risk="; ".join(risks) or None,
        workspace=figures.workspace(state),
        changes=figures.changes(patch, _MAX_FILES_LISTED),
        patch=figures.patch(task.id, patch),
        runs_code=_runs_code(batch.directory(task), state, triggers),
        links_out=state.links,
        near_limits={} if status is TaskStatus.TIMEOUT else _near_limits(task, state),
        error=error,
        transcript=f"{task.id}.jsonl" if started else None,
        tags=task.tags,
        metadata=task.metadata,
    )
    return as_text(value)


class Sums:
    """The sums of a batch's results for its summary, added up one at a time:
    their texts need not be held together.
    """

    def __init__(self) -> None:
        self._counts = {s: 0 for s in TaskStatus if s.final}
        self._purposes: dict[Purpose, Tally] = {}
        self._unsettled = 0
        self._costs: list[CostV1] = []
        self._tasks: list[SummaryTaskV1] = []
        #: The model and the tags of each.
        self._models: list[str] = []
        self._tags: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, text: str) -> None:
        """Add a result by its text, in the order of the tasks."""
        result = _RESULT.decode(text)
        self._counts[result.status] += 1
        for purpose, usage in result.usage.by_purpose.items():
            known = self._purposes.get(purpose, Tally())
            self._purposes[purpose] = known + figures.tallied(usage)
        self._unsettled += result.usage.unsettled_calls
        self._costs.append(result.cost)
        self._models.append(result.model)
        self._tags.append(result.tags)
        self._tasks.append(
            SummaryTaskV1(
                task=result.task,
                status=result.status,
                reason=result.reason,
                iterations=result.iterations,
                total_tokens=result.usage.total_tokens,
                cost=result.cost.total,
                run_s=result.timing.run_s,
                message=result.error.message if result.error else None,
                runs_code=None if result.runs_code is None else len(result.runs_code),
                near_limits=result.near_limits,
            )
        )

    def summary(self, batch: Batch, finished_at: float) -> str:
        """Return the text of the batch's summary."""
        total, completed = len(self._tasks), self._counts[TaskStatus.COMPLETED]
        value = SummaryV1(
            schema="batchd/summary/1",
            batch=batch.name,
            status="cancelled" if outcome(self._counts) == "cancelled" else "finished",
            request=batch.request,
            retry_of=batch.retry_of,
            received_at=timestamp(batch.received_at),
            finished_at=timestamp(finished_at),
            wall_s=_seconds(finished_at - batch.received_at),
            counts=self._counts,
            total=total,
            # Digits enough for one task of the most that there can be: 1.0 means all.
            success_rate=round(completed / total, 6) if total else None,
            usage=figures.used(self._purposes, self._unsettled),
            cost=figures.summed(self._costs),
            tasks=tuple(self._tasks),
            by_model=figures.groups(zip(self._models, self._tasks, strict=True)),
            by_tag=figures.groups(
                (tag, task)
                for tags, task in zip(self._tags, self._tasks, strict=True)
                for tag in dict.fromkeys(tags)
            ),
        )
        return as_text(value)


def rejected(batch: Batch, problems: Iterable[Problem], finished_at: float) -> str:
    """Return the text of the summary of a refused file."""
    value = SummaryV1(
        schema="batchd/summary/1",
        batch=batch.name,
        status="rejected",
        request=batch.request,
        received_at=timestamp(batch.received_at),
        finished_at=timestamp(finished_at),
        wall_s=_seconds(finished_at - batch.received_at),
        counts={s: 0 for s in TaskStatus if s.final},
        total=0,
        success_rate=None,
        usage=figures.used({}, 0),
        cost=figures.summed([]),
        tasks=(),
        errors=tuple(ProblemV1(place=p.place, message=p.message, hint=p.hint) for p in problems),
    )
    return as_text(value)


def line(text: str) -> str:
    """Return a result file's text as one line of ``results.jsonl``."""
    return msgspec.json.format(text.encode(), indent=-1).decode() + "\n"


def transcript(events: Iterable[Event]) -> str:
    """Return the text of a task's transcript: one line an event, ``{"event": kind, "at": …, …}``.

    The last event's copy of the result is left out: it stands in its own file.
    So are the items that answers came in.
    """
    lines = []
    for event in map(_without_items, events):
        fields = msgspec.to_builtins(event)
        fields.pop("result", None)
        if isinstance(event, CallAnswered):
            del fields["answer"]["replay"]
        fields["at"] = timestamp(event.at)
        lines.append(msgspec.json.encode({"event": type(event).__name__, **fields}).decode())
    return escape_json("\n".join(lines)) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a line of a transcript; in ``logs --json`` it also says whose."""
    kinds = get_args(Event)
    made, definitions = formats.components(*kinds)
    for kind in kinds:
        event = definitions[kind.__name__]
        text = {"type": "string"}
        head = {"batch": text, "task": text, "event": {"const": kind.__name__}}
        event["properties"] = {**head, **event["properties"], "at": {**text, "format": "date-time"}}
        event["properties"].pop("result", None)
        event["required"] = ["event", *(n for n in event.get("required", ()) if n != "result")]
    definitions["Answer"]["properties"].pop("replay", None)
    return {"anyOf": made, "$defs": definitions}


def _without_items(event: Event) -> Event:
    """Return an event without what is for a provider alone."""
    if isinstance(event, CallAnswered) and event.answer.replay:
        return replace(event, answer=replace(event.answer, replay=None))
    return event


@lru_cache(maxsize=64)  # a batch's tasks share one, and so do those that end together
def timestamp(at: float) -> str:
    """Return a moment as ISO 8601 in UTC, to the millisecond, with Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_text(value: ResultV1 | SummaryV1 | StatusV1 | Mapping[str, Any]) -> str:
    """Return the text of a file that is published."""
    return escape_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n"


def _seconds(value: float) -> float:
    return round(max(0.0, value), 3)


def _near_limits(task: Task, state: TaskState) -> dict[str, float]:
    # A single round or call is how most tasks are done, whatever the limit.
    nearly = state.nearly_used(task.limits, state.last_at)
    return {
        key: round(used / most, 4)
        for key, used, most in nearly
        if used > 1 or key not in {"max_iterations", "max_calls"}
    }


def _listed(changes: FileChanges) -> FilesV1:
    return FilesV1(
        created=changes.created[:_MAX_FILES_LISTED],
        modified=changes.modified[:_MAX_FILES_LISTED],
        deleted=changes.deleted[:_MAX_FILES_LISTED],
    )


def _runs_code(
    directory: str, state: TaskState, after: Mapping[str, Trigger] | None
) -> tuple[RunsCodeV1, ...] | None:
    """Return what a task changed that others run; None where no one knows."""
    if state.terms is None or Purpose.AGENT not in state.spend:
        return ()  # it never began, or no model has answered: nothing of it has run
    before = state.terms.triggers
    if before is None or after is None:
        return None
    changes = islice(changed(before, after, state.started_at).items(), _MAX_FILES_LISTED)
    return tuple(
        RunsCodeV1(
            path=path,
            change=change,
            by=after[path].by,
            show=show(directory, path, after[path], state.started_at),
        )
        for path, change in changes
    )
