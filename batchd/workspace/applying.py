"""Puts a task's patch into the repository that it is of: all of it, or nothing.

It runs in the sandbox, where nothing that the repository has git run can reach anything else; and of the repository's own
configuration nothing counts for files: no hook, filter or program of it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchd.errors import WorkspaceError
from batchd.sandbox import Workplace
from batchd.workspace import git

_PATIENCE_S = 300.0
#: Makes the tree that the patch, on standard input, makes of the commit $base: in an index and a repository of ours, whose
#: new objects go to the repository's own. Prints why not, behind "refused:".
_TREE = """
cat > "$own/patch"
store=.git; [ -d .git ] || store=.
repo() { git --git-dir="$store" "$@"; }
refuse() { printf 'refused: %s\\n' "$1" >&2; exit 9; }
if [ "$(repo config --type=bool --default=false core.sparseCheckout)" = true ]; then
    refuse "its working tree is sparse: give --branch, or apply the patch there by hand"
fi
git init --quiet --bare --template= "$own/git"
ours() { GIT_OBJECT_DIRECTORY="$PWD/$store/objects" GIT_DIR="$own/git" GIT_WORK_TREE="$PWD" "$@"; }
made() {
    rm -f "$own/index"
    GIT_INDEX_FILE="$own/index" ours git read-tree "$1"
    if ! GIT_INDEX_FILE="$own/index" ours git apply --cached --3way --whitespace=nowarn "$own/patch" > "$own/said" 2>&1; then
        names=$(GIT_INDEX_FILE="$own/index" ours git diff --name-only --diff-filter=U | head -n 8 | tr '\\n' ' ')
        [ -n "$names" ] || names=$(grep '^error' "$own/said" | head -n 3 | tr '\\n' ' ')
        refuse "it does not fit what is there now: $names"
    fi
    GIT_INDEX_FILE="$own/index" ours git write-tree
}
"""
#: On the branch $1, which begins at $2 where it is new; by $3 <$4>, with the message $5.
_BRANCH = (
    _TREE
    + """
ref="refs/heads/$1"
repo check-ref-format "$ref" || refuse "$1 is no name for a branch"
if [ "$(repo symbolic-ref --quiet HEAD || true)" = "$ref" ] && [ "$store" = .git ]; then
    refuse "$1 is checked out: name another branch, or none"
fi
old=$(repo rev-parse --verify --quiet "$ref^{commit}" || true)
parent=${old:-$2}
repo cat-file -e "$parent^{commit}" 2> /dev/null || refuse "it has no commit $2 (any more), where the task began"
tree=$(made "$parent")
commit=$(printf '%s\\n' "$5" | GIT_AUTHOR_NAME="$3" GIT_AUTHOR_EMAIL="$4" GIT_COMMITTER_NAME="$3" \\
    GIT_COMMITTER_EMAIL="$4" ours git commit-tree "$tree" -p "$parent")
repo update-ref -m 'batchd apply' "$ref" "$commit" "${old:-0000000000000000000000000000000000000000}"
printf 'commit %s\\n' "$commit"
"""
)
#: Into the working tree, and the index. What it is about to do stands in a file first, so that one that was cut short is
#: brought to its end by the next.
_TREE_IN_PLACE = (
    _TREE
    + """
[ "$store" = .git ] || refuse "it has no working tree: give --branch"
note=.git/batchd-apply
head=$(repo rev-parse --verify --quiet HEAD) || refuse "it has no commit yet"
sum=$(sha256sum < "$own/patch" | cut -c 1-64)
real() { GIT_INDEX_FILE="$PWD/.git/index" ours git "$@"; }
dirty() { real diff-index --name-only "$head" --; }
rm -f "$own/dirty"
if [ -f "$note" ] && [ "$(cat "$note")" = "$head $sum" ]; then
    rm -f .git/index.lock
    tree=$(made "$head")
    real diff-tree -r --name-only "$head" "$tree" > "$own/touched"
    real update-index -q --refresh > /dev/null || true
    dirty > "$own/dirty"
    other=$(grep -vxFf "$own/touched" "$own/dirty" | head -n 8 | tr '\\n' ' ' || true)
    [ -z "$other" ] || refuse "other files have been changed since it was cut short: $other"
    real read-tree --reset -u "$tree"
else
    [ ! -e .git/index.lock ] || refuse "another git is at work there (.git/index.lock)"
    real update-index -q --refresh > /dev/null || true
    names=$(dirty | head -n 8 | tr '\\n' ' ')
    [ -z "$names" ] || refuse "its working tree has changes of its own: $names"
    tree=$(made "$head")
    printf '%s\\n' "$head $sum" > "$note.new" && mv "$note.new" "$note"
    if ! real read-tree -m -u "$head" "$tree" > "$own/said" 2>&1; then
        rm -f "$note"
        refuse "$(grep -v '^hint' "$own/said" | head -n 4 | tr '\\n' ' ')"
    fi
fi
sync .git/index
rm -f "$note"
printf 'tree %s\\n' "$tree"
"""
)
_REFUSED = "refused: "


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that gets a commit."""

    name: str
    #: Where it begins, if it is new.
    base: str
    author: str
    email: str
    message: str


async def apply(place: Workplace, patch: bytes, branch: Branch | None) -> str:
    """Put a patch into the repository at ``place``; return what was made: ``commit HASH`` or ``tree HASH``.

    Without a branch it goes into the working tree and the index, which must be as HEAD has them. Raises
    ``WorkspaceError`` where it does not fit, with the reason, and ``SandboxError``: then nothing has changed.
    """
    if branch is None:
        argv = git.script(_TREE_IN_PLACE)
    else:
        argv = git.script(
            _BRANCH, branch.name, branch.base, branch.author, branch.email, branch.message
        )
    ran = await place.run(argv, stdin=patch, timeout_s=_PATIENCE_S)
    last = ran.output.strip().rpartition("\n")[2]
    if ran.exit_code and last.startswith(_REFUSED):
        raise WorkspaceError(last.removeprefix(_REFUSED).strip())
    git.insist(ran, "the patch cannot be applied")
    return last
