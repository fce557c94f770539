"""What a request asks for: the names in its path, and the values of its query."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from batchd.errors import UsageError
from batchd.records import Ref, TaskStatus
from batchd.store.queries import SORTS
from batchd.store.reader import StoreReader
from batchd.web.page_updates import TaskFilter

#: Characters of what tasks are searched for.
_MAX_SEARCH_CHARS = 200


def known(batch: str, task: str = "") -> Callable[[StoreReader], object]:
    """Return what asks the store whether there is such a batch or task."""
    return lambda reader: reader.task(Ref(batch, task)) if task else reader.batch(batch)


def ref(request: Request) -> Ref:
    """Return the task that a path names."""
    return Ref(request.path_params["batch"], request.path_params["task"])


def number(request: Request, name: str) -> int:
    """Return a count from the query; 0 where there is none. Raises ``UsageError``."""
    text = request.query_params.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # beyond it no page is
        raise UsageError(f"{name} is a number")
    return int(text)


def task_filter(request: Request) -> TaskFilter:
    """Return which tasks of a batch are wanted, and sorted by what. Raises ``UsageError``."""
    sort = request.query_params.get("sort", "")
    statuses = [s for s in request.query_params.get("status", "").split(",") if s]
    if sort.removeprefix("-") not in SORTS or not {*statuses} <= {*TaskStatus}:
        raise UsageError("sort is a column, and status a list of statuses")
    return TaskFilter(
        statuses=tuple(statuses),
        text=request.query_params.get("q", "")[:_MAX_SEARCH_CHARS],
        sort=sort.removeprefix("-"),
        descending=sort.startswith("-"),
        page=number(request, "page"),
    )
