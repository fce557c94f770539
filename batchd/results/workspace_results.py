"""The part of a result about a task's clone or copy."""

from __future__ import annotations

import hashlib

from batchd.formats import ChangeV1, PatchV1, WorkspaceV1
from batchd.records import Patch
from batchd.taskstate import TaskState


def workspace(state: TaskState) -> WorkspaceV1 | None:
    """Return what the task worked on; None: a directory in place, or it never began."""
    base = state.terms.base if state.terms else None
    if base is None:
        return None
    origin = base.origin
    return WorkspaceV1(
        kind=origin.kind,
        source=origin.source,
        ref=origin.ref,
        base=base.commit,
        branch=base.branch,
    )


def changes(patch: Patch | None, most: int) -> tuple[ChangeV1, ...] | None:
    """Return what became of its files, ``most`` at most; None: no one knows."""
    if patch is None or patch.problem:
        return None
    return tuple(
        ChangeV1(path=c.path, added=c.added, removed=c.removed) for c in patch.changes[:most]
    )


def patch(task: str, made: Patch | None) -> PatchV1 | None:
    """Return what is known of its patch; None: nothing has changed."""
    if made is None or not (made.changes or made.problem or made.lacks):
        return None
    return PatchV1(
        file=f"{task}.patch" if made.data else None,
        files=len(made.changes),
        bytes=len(made.data),
        sha256=hashlib.sha256(made.data).hexdigest() if made.data else "",
        left_out=made.left_out,
        withheld=made.withheld,
        lacks=made.lacks or None,
        problem=made.problem or None,
    )
