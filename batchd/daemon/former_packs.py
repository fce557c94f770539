"""What 0.2.0 has left of directories that were on other machines: packs.

No daemon lays them out any more, so it starts only where there are none, or where somebody says
that they may go. Their tasks then go on in the directory as it is, and their models learn that
files may be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from batchd import trees
from batchd.errors import NotPossibleError
from batchd.log import Action, get_logger
from batchd.records import Ref
from batchd.words import counted, listed

#: Packs, and below them the list of each task, as BATCH.TASK; and these lists once the packs are
#: gone.
_PACKS, _TASKS, _DROPPED = "packs", "tasks", "dropped-packs"
_NAMED = 5


def insist(state: Path, *, drop: bool) -> None:
    """Return where no task's changes lie in packs; ``drop``: they may go.

    Raises ``NotPossibleError``, and ``OSError``.
    """
    lists = state / _PACKS / _TASKS
    names = sorted(each.name for each in lists.iterdir()) if lists.is_dir() else []
    tasks = [name.replace(".", "/", 1) for name in names]
    if names and not drop:
        more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
        raise NotPossibleError(
            f"what {counted(len(tasks), 'task')} changed on other machines ({listed(tasks[:_NAMED])}{more}) lies "
            f"packed in {state / _PACKS}, and is not in their directories: run batchd 0.2 once, without [pool] "
            "listen, until `batchd status` shows no directory_trouble and these tasks have ended, or "
            "`batchd serve --drop-packs`: they go on in the directory as it is, and their models learn that files "
            "may be lost"
        )
    if names:
        (state / _DROPPED).mkdir(mode=0o700, exist_ok=True)
        for name in names:
            (lists / name).rename(state / _DROPPED / name)
        get_logger().warning(Action.DIRECTORY_TROUBLE, message="packs are dropped", tasks=tasks)
    trees.remove(state / _PACKS)


def lost(state: Path, ref: Ref) -> bool:
    """Whether what a task changed was dropped."""
    return (state / _DROPPED / f"{ref.batch}.{ref.task}").exists()


def forget(state: Path, unfinished: Iterable[Ref]) -> None:
    """Forget the tasks that have ended."""
    names = {f"{ref.batch}.{ref.task}" for ref in unfinished}
    with contextlib.suppress(OSError):  # there are none, or some are left
        for each in (state / _DROPPED).iterdir():
            if each.name not in names:
                each.unlink()
        (state / _DROPPED).rmdir()
