"""What a task has changed in its clone or copy, as people and pages are given it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from batchd.formats import ResultV1

_HEAD = b"\ndiff --git "


def whole(result: ResultV1) -> bool:
    """Return whether there is a patch, with all of its files, that may be shown."""
    patch = result.patch
    return bool(patch and patch.file and not patch.withheld and not patch.left_out)


def by_hand(into: Path, patch: Path) -> str:
    """Return the command that puts a patch into a directory as git of its user does."""
    # In a repository, git leaves out what lies outside of the directory in which it runs.
    top = next((each for each in (into, *into.parents) if (each / ".git").exists()), into)
    below = [] if top == into else [f"--directory={into.relative_to(top)}"]
    return shlex.join(["git", "-C", str(top), "apply", *below, str(patch)])


def remarks(result: ResultV1) -> list[str]:
    """Return what is to be said of a task's files and patch, a clause each:
    why they may be lost, why there is none, or what it lacks; none: it is whole.
    """
    patch, there = result.patch, f"its files lie in {result.dir}"
    found = [result.at_risk] if result.at_risk else []
    if patch is None:
        if result.workspace is not None and result.changes is None:
            found.append(f"it ended before batchd looked at its changes: {there}")
        return found
    if patch.problem:
        found.append(f"its patch could not be made: {patch.problem}; {there}")
    if patch.withheld:
        found.append(f"its patch holds a secret, and is not shown: {patch.file}")
    if patch.lacks:
        found.append(f"of its patch: {patch.lacks}; {there}")
    if patch.left_out:
        count = len(patch.left_out)
        limit = "[workspace] max_patch_bytes"
        found.append(f"the changes of {count:,} files are left out of its patch ({limit}): {there}")
    return found


def lines(result: ResultV1) -> str:
    """Return how much a task has changed: "3 files, +10 -2"."""
    changes = result.changes or ()
    files = result.patch.files if result.patch else len(changes)
    added, removed = sum(c.added or 0 for c in changes), sum(c.removed or 0 for c in changes)
    more = " and more" if len(changes) < files else ""
    return f"{files:,} file{'' if files == 1 else 's'}, +{added:,} -{removed:,}{more}"


def shown(result: ResultV1, data: bytes | None, most: int) -> dict[str, Any] | None:
    """Return the patch of a task: its text, what became of each file,
    and what is to be said; None: there is nothing to show.

    ``data``: the patch; None: it cannot be had.
    Of its text as many files are given as ``most`` bytes hold.
    """
    patch, said = result.patch, [f"{line[0].upper()}{line[1:]}." for line in remarks(result)]
    if patch is None and not said:
        return None
    text = data or b""
    if patch is not None:
        if patch.withheld:
            text = b""
        elif patch.file and data is None:
            said.append(f"{patch.file} is gone, or is not what the result says.")
        if len(text) > most:
            text = text[: text.rfind(_HEAD, 0, most) + 1]
            said.append(f"The rest is in {patch.file}.")
    changes = result.changes or ()
    return {"text": text.decode("utf-8", "replace"), "changes": changes, "said": said}
