# On the branch $1, which begins at $2 where it is new; by $3 <$4>, with the message $5;
# where $6 is not empty, it must be new.

ref="refs/heads/$1"
case $1 in HEAD | -*) refuse "$1 is not a name for a branch" ;; esac
repo check-ref-format "$ref" || refuse "$1 is not a name for a branch"
if [ "$(repo symbolic-ref --quiet HEAD || true)" = "$ref" ] && [ "$store" = .git ]; then
    refuse "$1 is checked out: name another branch, or none"
fi
old=$(repo rev-parse --verify --quiet "$ref^{commit}" || true)
[ -z "$6" ] || [ -z "$old" ] || refuse "the branch $1 is there already: name another one"
# Of all its working trees git knows which are on it; it is moved to where it is.
[ -z "$old" ] || repo branch --quiet --force -- "$1" "$old" 2> "$own/why" || refuse "$(why)(name another branch)"
parent=${old:-$2}
repo cat-file -e "$parent^{commit}" || refuse "it has no commit $2 (any more), where the task began"
made "$parent"
[ "$tree" != "$(repo rev-parse "$parent^{tree}")" ] || refuse "it is there already"
commit=$(printf '%s\n' "$5" | GIT_AUTHOR_NAME="$3" GIT_AUTHOR_EMAIL="$4" GIT_COMMITTER_NAME="$3" \
    GIT_COMMITTER_EMAIL="$4" ours commit-tree "$tree" -p "$parent")
repo update-ref --no-deref -m 'batchd apply' "$ref" "$commit" "${old:-0000000000000000000000000000000000000000}"
printf 'commit %s\n' "$commit"
