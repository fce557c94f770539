# Into the working tree, and the index. What it is about to do stands in a file first, so that one
# that was cut short is brought to its end by the next; one that fails is taken back.

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
[ "$(names | tr -d '\0' | wc -l)" = 0 ] || refuse "a name holds a line end: apply the patch by hand"
names | tr '\0' '\n' > "$own/touched"
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
        printf '%s\n' "$path"
    done < "$own/touched" > "$own/others"
    grep -vxFf "$own/touched" "$own/dirty" >> "$own/others" || true
    others=$(few < "$own/others")
    [ -z "$others" ] || refuse "files have been changed since it was cut short: $others(remove $note to begin again)"
    real read-tree -m "$head"
    back
else
    others=$(few < "$own/dirty")
    [ -z "$others" ] || refuse "its working tree has changes of its own: ${others% } (commit or stash them, or apply to a branch: --branch NAME)"
    # Files that git does not know are the owner's, ignored ones too.
    names --diff-filter=A | exact ls-files --others -- | few > "$own/way"
    [ ! -s "$own/way" ] || refuse "files of your own are in the way: $(cat "$own/way")"
    names --diff-filter=A | tr '\0' '\n' | while IFS= read -r path; do
        above=$path
        while case $above in */*) true ;; *) false ;; esac; do
            above=${above%/*}
            if [ -L "$above" ] || { [ -e "$above" ] && ! [ -d "$above" ]; }; then
                real ls-files --error-unmatch -- ":(literal)$above" > "$own/why" 2>&1 || printf '%s\n' "$above"
            fi
        done
    done | sort -u | few > "$own/way"
    [ ! -s "$own/way" ] || refuse "files of your own are in the way: $(cat "$own/way")"
fi
# Git itself sees what it does not otherwise look at, before it writes.
if ! real read-tree -n -m -u "$head" "$tree" > "$own/why" 2>&1; then
    rm -f "$note"
    refuse "$(why)(nothing was written; \`git ls-files -v\` marks with h or S what git does not look at)"
fi
printf '%s\n' "$head $sum" > "$note.new" && mv "$note.new" "$note"
if ! real read-tree -m -u "$head" "$tree" > "$own/why" 2>&1; then
    # The index is as it was.
    back
    rm -f "$note"
    refuse "$(why)(all is as it was)"
fi
sync .git/index
rm -f "$note"
printf 'tree %s\n' "$tree"
