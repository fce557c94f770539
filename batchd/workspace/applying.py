"""The application of a task's patch to the repository that it is of: all of it, or nothing.

It runs in the sandbox, where nothing that the repository has git run can reach anything else; and
of the repository's own configuration nothing counts for files:
no hook, filter or program of it runs. What git runs there for its owner, git of the owner's is
asked, outside: it only says that.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchd.errors import WorkspaceError
from batchd.sandbox import Workplace
from batchd.sandbox.command_user import CommandUser, as_root
from batchd.workspace import git

_PATIENCE_S = 300.0
_ASKED_S = 30.0
#: What stands between the words of a setting, for a shell.
_BETWEEN_WORDS = re.compile(r"[\s'\"!=;|&()]+")
#: Of links that lead to links, so many are followed.
_LINKS = 40
#: What both ways begin with. On standard input come patterns of $ruled bytes for the names that no
#: patch may change, and the patches, each of so many bytes as $sizes says. Trees are made in an
#: index and a repository of ours, whose new objects go to the repository's own.
#: Why not is printed behind "refused:".
_COMMON = """
head -c "$ruled" > "$own/ruled"
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
shared=$(repo config --local --get core.sharedRepository || echo umask)
git init --quiet --bare --template= --shared="$shared" "$own/git"
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
    names=$(draft diff-tree -r -z --no-renames --name-only "$1" "$tree" | grep -aEzf "$own/ruled" | tr '\\0' '\\n' | few || true)
    [ -z "$names" ] || refuse "it changes what git runs there by itself: ${names% }; look at it, then give --with-hooks"
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
[ -z "$old" ] || repo branch --quiet --force -- "$1" "$old" 2> "$own/why" || refuse "$(why)(name another branch)"
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
# Git itself sees what it does not otherwise look at, before it writes.
if ! real read-tree -n -m -u "$head" "$tree" > "$own/why" 2>&1; then
    rm -f "$note"
    refuse "$(why)(nothing was written; \\`git ls-files -v\\` marks with h or S what git does not look at)"
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


def obeyed(into: Path) -> bytes:
    """Return patterns of names for grep: what a patch must not change unasked in a repository.

    That are hooks, files with settings and files that settings name, and the links on the way to
    them, as git of the repository's owner finds them: asked for that, outside of the sandbox, it
    runs nothing. Raises ``WorkspaceError`` where it does not say it.
    """
    found, own, way = into.stat(), "~", dict[str, Any]()
    if as_root():
        who = CommandUser.of(found.st_uid, found.st_gid)
        own = f"~{who.name}"
        env = {"HOME": os.path.expanduser(own), "PATH": os.environ.get("PATH", os.defpath)}
        way = {"user": who.uid, "group": who.gid, "extra_groups": (), "env": env}
    argv = ("git", "--git-dir=.git" if (into / ".git").is_dir() else "--git-dir=.")

    def asked(*words: str) -> str:
        try:
            ran = subprocess.run(
                (*argv, *words), cwd=into, capture_output=True, check=True, timeout=_ASKED_S, **way
            )
        except (OSError, subprocess.SubprocessError) as error:
            why = os.fsdecode(getattr(error, "stderr", None) or str(error)).strip()
            raise WorkspaceError(
                f"git does not say what it runs there ({why}): look at the patch, then give --with-hooks"
            ) from error
        return os.fsdecode(ran.stdout)

    def named(base: Path, word: str) -> Path:
        word = own + word[1:] if word.startswith("~/") else word
        return into / base / os.path.expanduser(word)

    hooks = into / asked("rev-parse", "--git-path", "hooks").removesuffix("\n")
    files = list(hooks.glob("*"))
    said = asked("config", "--list", "--includes", "--show-origin", "-z").split("\0")
    for origin, setting in zip(said[::2], said[1::2], strict=False):
        key, _, value = setting.partition("\n")
        if key.startswith("include"):  # also one that is not there yet
            files.append(named(Path(origin.removeprefix("file:")).parent, value))
        elif not key.startswith("alias."):  # runs only when it is asked for
            words = (value, *_BETWEEN_WORDS.split(value))
            files += filter(os.path.lexists, (named(into, word) for word in words))
    ways = [(way, "(/|$)") for way in _ways(hooks)]
    ways += [(way, "$") for file in files for way in _ways(file)]
    patterns = set[str]()
    for each, end in ways:
        if into in each.parents:
            name = each.relative_to(into)
            # A link in a folder's place would lead elsewhere.
            patterns |= {_exactly(name) + end, *(f"{_exactly(above)}$" for above in name.parents)}
    return b"".join(os.fsencode(f"{pattern}\n") for pattern in patterns)


def _ways(path: Path) -> Iterator[Path]:
    """Yield a path, and what it is with one more of the links on the way followed each time."""
    for _ in range(_LINKS):
        yield Path(os.path.normpath(path))
        link = next(filter(os.path.islink, reversed((path, *path.parents))), None)
        if link is None:
            return
        path = link.parent / link.readlink() / path.relative_to(link)


def _exactly(name: Path) -> str:
    return "^" + re.sub(r"[\\.\[{}()*+?^$|]", r"\\\g<0>", str(name))


async def apply(
    place: Workplace, patches: Sequence[bytes], branch: Branch | None, ruled: bytes = b""
) -> str:
    """Put patches into the repository at ``place``, together;
    return what was made: ``commit HASH`` or ``tree HASH``.

    Without a branch they go into the working tree and the index, which must be as HEAD has them.
    ``ruled``: patterns of the names that they may not change. Raises ``WorkspaceError`` where they
    do not fit, with the reason, and ``SandboxError``: then nothing has changed.
    """
    words = () if branch is None else dataclasses.astuple(branch)
    text = _TREE_IN_PLACE if branch is None else _BRANCH
    sizes = " ".join(str(len(patch)) for patch in patches)
    given = f"ruled={len(ruled)} sizes='{sizes}'\n"
    argv = git.script(given + text, *words)
    ran = await place.run(argv, stdin=b"".join((ruled, *patches)), timeout_s=_PATIENCE_S)
    last = ran.output.strip().rpartition("\n")[2]
    if ran.exit_code and last.startswith(_REFUSED):
        raise WorkspaceError(last.removeprefix(_REFUSED).strip())
    git.insist(ran, "the patch cannot be applied")
    return last
