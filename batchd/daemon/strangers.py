"""What lies in inbox and outbox since before this store began, or as ours, and is unknown to it: of a store that was lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd.daemon.core import Core
from batchd.errors import NotPossibleError
from batchd.log import Action
from batchd.spool import claims, outbox
from batchd.spool.ulid import PATTERN, mark_of, time_of
from batchd.store import witness

#: Names that one message has room for.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Stranger:
    """A batch without its end, or a claimed file, and why nothing becomes of it."""

    path: Path

    @property
    def waits(self) -> bool:
        """Whether it lies there still."""
        return self.path.exists() and not (self.path / outbox.SUMMARY).exists()


async def watch(core: Core) -> None:
    """Look once, before anything is taken up, and have `status` tell of what was found as long as it lies there."""
    state = Path(core.config.paths.state)
    known = await core.store.writer.submit(
        lambda journal: {name for (name,) in journal.db.execute("SELECT name FROM batches")}
    )
    mark, began = claims.mark(state), witness.since(state / "batchd.db")
    folders = [*_folders(Path(core.config.paths.outbox), known, mark, began)]
    files = [*_files(Path(core.config.paths.inbox), mark, began)]
    at = time.time()
    if folders:
        how = "put a backup in place with `batchd restore BACKUP`, or drop their request files again and move them away"
        what = "batches without an end in the outbox"
        core.troubles.also(Action.UNKNOWN_WORK, partial(_left, what, folders, how, at))
    if files:
        how = "move them back into the inbox, unless the daemon that claimed them still runs"
        what = "files claimed in the inbox"
        core.troubles.also(Action.UNKNOWN_WORK, partial(_left, what, files, how, at))
    for trouble in core.troubles.open:
        if trouble.what is Action.UNKNOWN_WORK:
            core.log.warning(trouble.what, message=trouble.message, mend=trouble.mend)


def _left(
    what: str, found: list[Stranger], how: str, at: float
) -> tuple[NotPossibleError, float] | None:
    """Return what of it lies there still, with the fix, and since when that is known."""
    left = [stranger.path for stranger in found if stranger.waits]
    if not left:
        return None
    more = f" and {len(left) - _NAMED:,} more" if len(left) > _NAMED else ""
    named = ", ".join(map(str, left[:_NAMED])) + more
    return NotPossibleError(f"{len(left):,} {what} are unknown to this store: {named}: {how}"), at


def _folders(folder: Path, known: set[str], mark: int, began: float) -> Iterator[Stranger]:
    """Yield the folders of batches that were begun here, by this state directory or before this store began."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():  # noqa: PTH208 (names)
        path = folder / name
        if name in known or name.startswith(".") or path.is_symlink() or not path.is_dir():
            continue
        claim = outbox.claim_of(path)
        if claim is None:
            continue
        if PATTERN.match(claim):
            ours = mark_of(claim[:26]) == mark or time_of(claim) < began
        else:
            ours = path.stat().st_mtime < began
        if ours and (found := Stranger(path)).waits:
            yield found


def _files(inbox: Path, mark: int, began: float) -> Iterator[Stranger]:
    """Yield what others claimed before this store began."""
    for claim in claims.claimed(inbox):
        if mark_of(claim.ulid) != mark and claim.received_at < began:
            yield Stranger(claim.path)
