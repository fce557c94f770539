"""Makes a task's clone, or copy, in its directory."""

from __future__ import annotations

from batchd.records import Base
from batchd.sandbox import Workplace
from batchd.workspace import git

#: Makes a clone of $1 at the commit $2 on the branch $3; its origin is called $4, and files are taken as $5 says.
#: What an earlier start did not finish goes first. Objects are read in the mirror, and none is copied.
_CLONE = """
find . -mindepth 1 -delete
git init --quiet --template= --initial-branch="$3" .
printf '%s\\n' "$1/git/objects" > .git/objects/info/alternates
if [ -f "$1/git/shallow" ]; then cp "$1/git/shallow" .git/shallow; fi
git --git-dir="$1/git" for-each-ref --format='%(objectname) %(refname)' refs/heads refs/tags |
    sed 's, refs/heads/, refs/remotes/origin/,' > .git/packed-refs
git update-ref "refs/heads/$3" "$2"
git config remote.origin.url "$4"
git config remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'
mkdir .git/info
printf '%s\\n' "$5" > .git/info/attributes
git reset --quiet --hard
"""
_COPY = """
find . -mindepth 1 -delete
cp --archive --reflink=auto -- "$1/tree/." .
"""


async def make(place: Workplace, base: Base, timeout_s: float) -> None:
    """Make the directory what a task begins with. Raises ``WorkspaceError``, ``SandboxError``."""
    if base.origin.kind == "copy":
        argv = git.script(_COPY, place.base)
    else:
        source = base.origin.source
        words = (place.base, base.commit, base.branch, source, git.ATTRIBUTES)
        argv = git.script(_CLONE, *words)
    ran = await place.run(argv, timeout_s=timeout_s)
    git.insist(ran, f"{base.origin.source} cannot be made the task's own")
    place.begin()
