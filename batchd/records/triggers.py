"""Triggers: what other programs run, or obey, as soon as somebody uses a directory, as they are
at one moment. ``sandbox/trigger_search`` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Literal, TypeAlias

#: The folders of programs that keep versions, beside ``.git``.
VERSIONS = frozenset({".hg", ".sl", ".svn", ".jj", ".bzr", "_darcs", ".pijul", "CVS"})

#: The path under which it stands that not all of a directory was looked at.
REST = "."
#: What lies there; ``link``: to what is elsewhere, or no file.
TriggerKind: TypeAlias = Literal["file", "link", "folder"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A file that others run or obey, as it is at one moment:
    it has changed where this is another one.
    """

    #: Whose programs, a word of ``data/runs_code.toml``; empty: what lies there is not known.
    by: str
    #: Inode, size, time of the last change of its content and of all else;
    #: of a link also those of what it leads to.
    stamp: tuple[int, ...] = ()
    kind: TriggerKind = "file"

    @property
    def changed_at(self) -> float:
        """When it, or what it leads to, was last changed: a time that no command can set."""
        return max(self.stamp[3::4], default=0) / 1e9


def changed(
    before: Mapping[str, Trigger], after: Mapping[str, Trigger], since: float
) -> Mapping[str, str]:
    """Return what became of each file that is not as it was,
    ``created`` or ``modified``, by path and sorted.

    What was removed runs no more. Where not all was looked at before, what was not found then
    counts only where it has changed ``since``.
    """
    return {
        path: "modified" if path in before else "created"
        for path, trigger in sorted(after.items())
        if before.get(path) != trigger
        and (path in before or REST not in before or trigger.changed_at >= since)
    }


def show(directory: str, path: str, trigger: Trigger, since: float) -> str:
    """Return the command that shows what a file holds, and runs nothing;
    ``since``: when the task began.
    """
    if path == REST:
        return f"find {quote(directory)} -newerct @{int(since)}"
    full = quote(f"{directory}/{path}")
    return {"file": f"cat -v {full}", "link": f"readlink {full}"}.get(
        trigger.kind, f"ls -la {full}"
    )
