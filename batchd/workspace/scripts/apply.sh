# What both ways begin with. On standard input come patterns of $ruled bytes for the names that no
# patch may change, and the patches, each of so many bytes as $sizes says. Trees are made in an
# index and a repository of ours, whose new objects go to the repository's own.
# Why not is printed behind "refused:".

head -c "$ruled" > "$own/ruled"
number=0
for size in $sizes; do head -c "$size" > "$own/patch$number"; number=$((number + 1)); done
store=.git; [ -d .git ] || store=.
repo() { git --git-dir="$store" "$@"; }
refuse() { printf 'refused: %s\n' "$1" >&3; exit 9; }
few() { head -n 8 | tr '\n' ' '; }
why() { sed '/^hint/d; s/^fatal: //' "$own/why" | head -n 4 | tr '\n' ' '; }
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
    GIT_OBJECT_DIRECTORY="$PWD/$store/objects" GIT_DIR="$own/git" \
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
            [ -n "$names" ] || names=$(grep '^error' "$own/why" | head -n 3 | tr '\n' ' ')
            refuse "it does not fit what is there now: $names"
        fi
        number=$((number + 1))
    done
    tree=$(draft write-tree)
    names=$(draft diff-tree -r "$1" "$tree" | grep -E '^:(160000|[0-7]* 160000)' | cut -f 2 | few || true)
    [ -z "$names" ] || refuse "it changes submodules, or repositories within: $names"
    names=$(draft diff-tree -r -z --no-renames --name-only "$1" "$tree" | grep -aEzf "$own/ruled" | tr '\0' '\n' | few || true)
    [ -z "$names" ] || refuse "it changes what git runs there by itself: ${names% }; look at it, then give --with-hooks"
}
