"""Problems of ``show`` and ``hide`` of ``[sandbox]``, each with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator

from batchd.config.sections import SandboxSection
from batchd.errors import Problem
from batchd.records import SHOWABLE

#: What commands have of batchd's own making, or by their network:
#: what stands there would not be the machine's.
_MADE = tuple(
    f"/etc/{name}"
    for name in ("passwd", "group", "nsswitch.conf", "gitconfig", "hosts", "resolv.conf")
)
_AS_IN = 'as in "/opt/tools"'


def problems(sandbox: SandboxSection) -> Iterator[tuple[tuple[str | int, ...], Problem]]:
    """Yield what is wrong, with its place."""
    for key, paths in (("show", sandbox.show), ("hide", sandbox.hide)):
        for index, path in enumerate(paths):
            problem = _problem(key, path)
            if problem is None and key == "hide" and path in sandbox.show:
                problem = Problem("", f"{path} is in show too", "name it in one of them")
            if problem:
                yield ("sandbox", key, index), problem


def _problem(key: str, path: str) -> Problem | None:
    if not any(path == top or path.startswith(f"{top}/") for top in SHOWABLE):
        what = (
            f"{path!r} is not an absolute path below {', '.join(SHOWABLE[:-1])} or {SHOWABLE[-1]}"
        )
        return Problem("", what, _AS_IN)
    if os.path.normpath(path) != path:
        what = f"{path!r} is not the shortest form of this path"
        return Problem("", what, f'write "{os.path.normpath(path)}"')
    if path == "/etc":
        return Problem(
            "", "/etc holds secrets, and what every command needs", "name the parts of it"
        )
    if path == "/usr" and key == "hide":
        return Problem("", "without /usr no command could run", "name the parts of it")
    if path in _MADE:
        return Problem("", f"{path} is not the machine's own: batchd makes it", "leave it out")
    return None
