"""The application of a task's patch to the repository that it is of: all of it, or nothing.

It runs in the sandbox, where nothing that the repository has git run can reach anything else; and
of the repository's own configuration nothing counts for files:
no hook, filter or program of it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from batchd.errors import WorkspaceError
from batchd.sandbox import Workplace
from batchd.workspace import git

_PATIENCE_S = 300.0
#: What both ways begin with. The patches come on standard input, each of so many bytes as $sizes
#: says; $hooks is "no" where none may change what git runs. Trees are made in an index and a
#: repository of ours, whose new objects go to the repository's own.
#: Why not is printed behind "refused:".
_COMMON = """
number=0
for size in $sizes; do head -c "$size" > "$own/patch$number"; number=$((number + 1)); done
store=.git; [ -d .git ] || store=.
repo() { git --git-dir="$store" "$@"; }
refuse() { printf 'refused: %s\\n' "$1" >&3; exit 9; }
few() { head -n 8 | tr '\\n' ' '; }
why() { sed '/^hint/d; s/^fatal: //' "$own/why" | head -n 4 | tr '\\n' ' '; }
if [ "$(repo config --type=bool --default=false core.sparseCheckout)" = true ]; then
    refuse "its working tree is sparse: apply the patch by hand"
fi
for state in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD BISECT_LOG; do
    [ ! -e "$store/$state" ] || refuse "something else is under way there ($store/$state): end that first"
done
git init --quiet --bare --template= "$own/git"
# How its owner has git take files; what else it says of files does not count.
crlf=$(repo config --local --get core.autocrlf || echo false)
modes=$(repo config --local --type=bool --get core.fileMode || echo true)
ours() {
    GIT_OBJECT_DIRECTORY="$PWD/$store/objects" GIT_DIR="$own/git" \\
        git -c core.autocrlf="$crlf" -c core.fileMode="$modes" "$@"
}
# Git puts a file there that two patches make: into a tree of its own.
draft() { GIT_INDEX_FILE="$own/index" GIT_WORK_TREE="$own/tree" ours -C "$own/tree" "$@"; }
# The tree that the patches make of a commit.
made() {
    mkdir "$own/tree"
    draft read-tree "$1"
    number=0
    for size in $sizes; do
        find "$own/tree" -mindepth 1 -delete
        if ! draft apply --cached --3way --whitespace=nowarn "$own/patch$number" > "$own/why" 2>&1; then
            names=$(draft diff --name-only --diff-filter=U | few)
            [ -n "$names" ] || names=$(grep '^error' "$own/why" | head -n 3 | tr '\\n' ' ')
            refuse "it does not fit what is there now: $names"
        fi
        number=$((number + 1))
    done
    tree=$(draft write-tree)
    names=$(draft diff-tree -r "$1" "$tree" | grep -E '^:(160000|[0-7]* 160000)' | cut -f 2 | few || true)
    [ -z "$names" ] || refuse "it changes submodules, or repositories within: $names"
    own_hooks=$(repo config --local --get core.hooksPath || true)
    if [ "$hooks" = no ] && [ -n "$own_hooks" ]; then
        names=$(draft diff-tree -r --name-only "$1" "$tree" | grep -F "${own_hooks#./}/" | few || true)
        [ -z "$names" ] || refuse "it changes what git runs there by itself: $names; look at it, then give --with-hooks"
    fi
}
"""
#: On the branch $1, which begins at $2 where it is new; by $3 <$4>, with the message $5.
_BRANCH = (
    _COMMON
    + """
ref="refs/heads/$1"
case $1 in HEAD | -*) refuse "$1 is not a name for a branch" ;; esac
repo check-ref-format "$ref" || refuse "$1 is not a name for a branch"
if [ "$(repo symbolic-ref --quiet HEAD || true)" = "$ref" ] && [ "$store" = .git ]; then
    refuse "$1 is checked out: name another branch, or none"
fi
old=$(repo rev-parse --verify --quiet "$ref^{commit}" || true)
# Of all its working trees git knows which are on it; it is moved to where it is.
[ -z "$old" ] || repo branch --quiet --force -- "$1" "$old" 2> "$own/why" || refuse "$(why): name another branch"
parent=${old:-$2}
repo cat-file -e "$parent^{commit}" || refuse "it has no commit $2 (any more), where the task began"
made "$parent"
[ "$tree" != "$(repo rev-parse "$parent^{tree}")" ] || refuse "it is there already"
commit=$(printf '%s\\n' "$5" | GIT_AUTHOR_NAME="$3" GIT_AUTHOR_EMAIL="$4" GIT_COMMITTER_NAME="$3" \\
    GIT_COMMITTER_EMAIL="$4" ours commit-tree "$tree" -p "$parent")
repo update-ref -m 'batchd apply' "$ref" "$commit" "${old:-0000000000000000000000000000000000000000}"
printf 'commit %s\\n' "$commit"
"""
)
#: Into the working tree, and the index. What it is about to do stands in a file first, so that one
#: that was cut short is brought to its end by the next; one that fails is taken back.
_TREE_IN_PLACE = (
    _COMMON
    + """
[ "$store" = .git ] || refuse "it has no working tree: give --branch"
note=.git/batchd-apply
head=$(repo rev-parse --verify --quiet HEAD) || refuse "it has no commit yet"
sum=$(cat "$own"/patch* | sha256sum | cut -c 1-64)
real() { GIT_INDEX_FILE="$PWD/.git/index" GIT_WORK_TREE="$PWD" ours "$@"; }
names() { real diff-tree -r -z --no-renames --name-only "$@" "$head" "$tree"; }
# What the patches name is as HEAD has it again; nothing else is touched.
back() {
    rm -f .git/index.lock
    names --diff-filter=A | xargs -0 -r rm -f -- || true
    names --diff-filter=a | real checkout-index --force --quiet -z --stdin >> "$own/why" 2>&1 || true
    real update-index -q --refresh >> "$own/why" 2>&1 || true
}
exact() { GIT_LITERAL_PATHSPECS=1 GIT_INDEX_FILE="$PWD/.git/index" GIT_DIR="$own/git" GIT_WORK_TREE="$PWD" xargs -0 -r git "$@"; }
again=no
[ ! -f "$note" ] || [ "$(cat "$note")" != "$head $sum" ] || again=yes
[ $again = yes ] || [ ! -e .git/index.lock ] || refuse "another git is at work there (.git/index.lock)"
rm -f .git/index.lock
real update-index -q --refresh > "$own/why" || true
real diff-index --name-only "$head" -- > "$own/dirty"
made "$head"
[ "$(names | tr -d '\\0' | wc -l)" = 0 ] || refuse "a name holds a line end: apply the patch by hand"
names | tr '\\0' '\\n' > "$own/touched"
if [ $again = yes ]; then
    # What it wrote of a file when it was cut short is a beginning of it; all else is somebody's own.
    while IFS= read -r path; do
        [ -e "$path" ] || [ -L "$path" ] || continue
        if [ -f "$path" ] && ! [ -L "$path" ]; then
            size=$(stat -c %s -- "$path")
            real cat-file --filters "$tree:$path" 2> "$own/why" | head -c "$size" | cmp -s - "$path" && continue
            real cat-file --filters "$head:$path" 2> "$own/why" | cmp -s - "$path" && continue
        elif [ -L "$path" ]; then
            continue
        fi
        printf '%s\\n' "$path"
    done < "$own/touched" > "$own/others"
    grep -vxFf "$own/touched" "$own/dirty" >> "$own/others" || true
    others=$(few < "$own/others")
    [ -z "$others" ] || refuse "files have been changed since it was cut short: $others(remove $note to begin again)"
    real read-tree -m "$head"
    back
else
    others=$(few < "$own/dirty")
    [ -z "$others" ] || refuse "its working tree has changes of its own: $others"
    # Files that git does not know are the owner's, ignored ones too.
    names --diff-filter=A | exact ls-files --others -- | few > "$own/way"
    [ ! -s "$own/way" ] || refuse "files of your own are in the way: $(cat "$own/way")"
    names --diff-filter=A | tr '\\0' '\\n' | while IFS= read -r path; do
        above=$path
        while case $above in */*) true ;; *) false ;; esac; do
            above=${above%/*}
            if [ -L "$above" ] || { [ -e "$above" ] && ! [ -d "$above" ]; }; then
                real ls-files --error-unmatch -- ":(literal)$above" > "$own/why" 2>&1 || printf '%s\\n' "$above"
            fi
        done
    done | sort -u | few > "$own/way"
    [ ! -s "$own/way" ] || refuse "files of your own are in the way: $(cat "$own/way")"
fi
# Git itself sees what it was told not to look at, before it writes.
if ! real read-tree -n -m -u "$head" "$tree" > "$own/why" 2>&1; then
    rm -f "$note"
    refuse "$(why)(nothing was written; \\`git ls-files -v\\` has a small letter where git does not look for changes)"
fi
printf '%s\\n' "$head $sum" > "$note.new" && mv "$note.new" "$note"
if ! real read-tree -m -u "$head" "$tree" > "$own/why" 2>&1; then
    # The index is as it was.
    back
    rm -f "$note"
    refuse "$(why)(all is as it was)"
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


async def apply(
    place: Workplace, patches: Sequence[bytes], branch: Branch | None, *, hooks: bool = False
) -> str:
    """Put patches into the repository at ``place``, together;
    return what was made: ``commit HASH`` or ``tree HASH``.

    Without a branch they go into the working tree and the index, which must be as HEAD has them.
    ``hooks``: they may change what the repository has git run. Raises ``WorkspaceError`` where they
    do not fit, with the reason, and ``SandboxError``: then nothing has changed.
    """
    words = () if branch is None else dataclasses.astuple(branch)
    text = _TREE_IN_PLACE if branch is None else _BRANCH
    sizes = " ".join(str(len(patch)) for patch in patches)
    given = f"sizes='{sizes}' hooks={'yes' if hooks else 'no'}\n"
    argv = git.script(given + text, *words)
    ran = await place.run(argv, stdin=b"".join(patches), timeout_s=_PATIENCE_S)
    last = ran.output.strip().rpartition("\n")[2]
    if ran.exit_code and last.startswith(_REFUSED):
        raise WorkspaceError(last.removeprefix(_REFUSED).strip())
    git.insist(ran, "the patch cannot be applied")
    return last
