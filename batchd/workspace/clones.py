"""The making of a task's clone, or copy, in its directory."""

from __future__ import annotations

from batchd.records import Base
from batchd.sandbox import Workplace
from batchd.workspace import git

#: Makes a clone of $1 at the commit $2 on the branch $3, which lies in the folder $4.
#: What an earlier start did not finish goes first.
#: Objects are read in the mirror, and none is copied.
_CLONE = """
find . -mindepth 1 -delete
# Another batch may fetch in this moment, and put another one in its place.
cp -R "$1/clone" .git || { sleep 0.5; rm -rf .git; cp -R "$1/clone" .git; }
printf '%s\\n' "$1/git/objects" > .git/objects/info/alternates
mkdir -p ".git/$4"
printf '%s\\n' "$2" > ".git/refs/heads/$3"
printf 'ref: refs/heads/%s\\n' "$3" > .git/HEAD
git reset --quiet --hard
"""
_COPY = """
find . -mindepth 1 -delete
cp --archive --reflink=auto -- "$1/tree/." .
"""


async def make(place: Workplace, base: Base, timeout_s: float) -> None:
    """Make the directory what a task begins with.

    Raises ``WorkspaceError``, ``SandboxError``, ``FolderError``.
    """
    if base.origin.kind == "copy":
        argv = git.script(_COPY, place.base)
    else:
        above = f"refs/heads/{base.branch}".rpartition("/")[0]
        argv = git.script(_CLONE, place.base, base.commit, base.branch, above)
    ran = await place.run(argv, timeout_s=timeout_s)
    git.insist(ran, f"{base.origin.source} cannot be made the task's own")
    place.begin()
