"""What becomes of directories on the daemon's machine:
packed before a task works on one elsewhere, laid out when it has.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from batchd.records import Pack
from batchd.sandbox import Sandbox, Workplace
from batchd.workspace import clones, packing
from batchd.workspace.directory_listing import look
from batchd.workspace.mirrors import Mirror
from batchd.workspace.packs import Shelf
from batchd.workspace.workspace_job import Lay, PackUp


async def packed(work: PackUp) -> Pack:
    """Return the pack of a directory, which is on the shelf by then.

    Raises ``WorkspaceError``, ``SandboxError``, ``OSError``.
    """
    shelf = Shelf(Path(work.shelf))
    alone = (
        Mirror(Path(work.directory).parent).locked() if work.mirror else contextlib.nullcontext()
    )
    draft = shelf.draft()
    try:
        with (
            alone,
            await Sandbox(work.policy).open(
                work.directory, fresh=False, network=False, env={}
            ) as place,
        ):
            pack = await packing.patiently(partial(_written, work, place, draft))
        await asyncio.to_thread(shelf.keep, draft, pack)
    finally:
        draft.unlink(missing_ok=True)
    return pack


async def _written(work: PackUp, place: Workplace, draft: Path) -> Pack:
    """Write what lies in a place to a draft, as far as its owner may read it.

    Raises as ``packing.packed`` does.
    """
    found = await asyncio.to_thread(place.look, look)
    made = await packing.packed(
        place,
        packing.everything(found),
        found.seen,
        draft,
        most=work.max_bytes,
        timeout_s=work.timeout_s,
    )
    return made.pack


async def laid(work: Lay) -> None:
    """Change a directory to what packs say.

    Raises ``WorkspaceError``, ``SandboxError``, ``FolderError``, ``OSError``.
    """
    shelf = Shelf(Path(work.shelf))
    largest = max((pack.plain for pack in work.changes), default=0)
    policy = replace(
        work.policy,
        max_file_bytes=max(work.policy.max_file_bytes, largest),
        max_cpu_s=work.policy.max_cpu_s * max(len(work.changes), 1),
    )
    base = work.base.mirror if work.base else ""
    with await Sandbox(policy).open(
        work.directory, fresh=work.fresh, network=False, env={}, base=base
    ) as place:
        if work.base is not None:
            await clones.make(place, work.base, work.timeout_s)
        if work.changes:
            await packing.unpacked(place, shelf, work.changes, work.timeout_s)
