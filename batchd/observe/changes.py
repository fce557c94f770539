"""What a task has changed in its clone or copy, as pages are given it."""

from __future__ import annotations

from typing import Any

from batchd.formats import ResultV1

_HEAD = b"\ndiff --git "


def shown(result: ResultV1, data: bytes | None, most: int) -> dict[str, Any] | None:
    """Return the patch of a task: its text, what became of each file, and what is to be said; None: there is nothing to show.

    ``data``: the patch; None: it cannot be had. Of its text as many files are given as ``most`` bytes hold.
    """
    patch = result.patch
    if patch is None:
        return None
    changes = [
        {"path": change.path, "added": change.added, "removed": change.removed}
        for change in result.changes or ()
    ]
    said = []
    if patch.problem:
        said.append(f"Its patch could not be made: {patch.problem}. Its files lie in {result.dir}.")
    if patch.withheld:
        said.append(f"Its patch holds a secret, and is not shown: {patch.file}.")
    elif patch.file and data is None:
        said.append(f"{patch.file} is gone, or is not what the result says.")
    if patch.lacks:
        said.append(f"Of the patch: {patch.lacks}.")
    if patch.left_out:
        said.append(
            f"{patch.file or 'A patch'} leaves out the changes of {len(patch.left_out):,} files: it would be too large."
        )
    text = b"" if data is None or patch.withheld else data
    if len(text) > most:
        text = text[: text.rfind(_HEAD, 0, most) + 1]
        said.append(f"The rest stands in {patch.file}.")
    return {"text": text.decode("utf-8", "replace"), "changes": changes, "said": said}
