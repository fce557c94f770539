"""batchd: a print spooler for LLM agents.

``batchd.submit("task.json").wait()`` returns results as objects: see ``api``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchd.version import __version__ as __version__

if TYPE_CHECKING:
    from batchd.api import (
        Batch as Batch,
        BatchdError as BatchdError,
        NoDaemonError as NoDaemonError,
        TaskFileError as TaskFileError,
        batch as batch,
        submit as submit,
    )

_API = ("Batch", "BatchdError", "NoDaemonError", "TaskFileError", "batch", "submit")


def __dir__() -> list[str]:
    return [*_API, "__version__"]


def __getattr__(name: str) -> Any:
    """Return what ``api`` gives: loaded when it is first asked for, for it takes time."""
    if name not in _API:
        raise AttributeError(f"module 'batchd' has no attribute {name!r}")
    from batchd import api

    return getattr(api, name)
