# Prints what has changed since the commit $2 of the mirror $1, a line each: what it leaves out, in
# words, or nothing; in base64 the lines by file, the first $3 bytes of the patch, and as much of
# what is no text in it, as it is. $4 is where a clone's objects lie on this machine,
# for who looks at it later, empty: it is none; files are taken as $5 says. In the words $6 it is
# the disk that refuses what is no property of the files.

limit=$3 info=.git/objects/info
if [ -n "$4" ] && [ -f $info/alternates ] && ! [ -L .git ] && ! [ -L .git/objects ] && ! [ -L $info ] &&
    ! [ -L $info/alternates ]; then
    printf '%s\n' "$4/git/objects" > $info/alternates || true
fi
# What the task has closed to itself is its own, and may be read.
find . -path ./.git -prune -o \( -type d ! -perm -u+rx -o -type f ! -perm -u+r \) -exec chmod u+rwX {} \;
# Git would wait for what a pipe by such a name says.
if [ -n "$(find . \( -name .gitattributes -o -name .gitignore \) -type p -print -quit)" ]; then
    echo 'error: a .gitattributes or .gitignore in it is a pipe' >&2
    exit 1
fi
git init --quiet --bare --template= "$own/git"
export GIT_DIR="$own/git" GIT_WORK_TREE="$PWD"
printf '%s\n' "$1/git/objects" > "$GIT_DIR/objects/info/alternates"
if [ -f "$1/git/shallow" ]; then cp "$1/git/shallow" "$GIT_DIR/shallow"; fi
apart
printf '%s\n' "$5" > "$GIT_DIR/info/attributes"
base=$2
git read-tree "$base"
if ! git add --all --ignore-errors -- .; then
    ! grep -qE ": ($6)\$" "$own/said" || exit 1
    printf 'not all could be read: %s' "$(grep -v '^warning\|^hint\|^ *$' "$own/said" | head -n 3 | tr '\n' ' ')"
fi
# Git does not look into a submodule's folder, which is empty in a clone; it stays what it was.
git ls-tree -r -z "$base" | grep -z '^160000' > "$own/modules" || true
git update-index -z --index-info < "$own/modules"
became=$(cut -z -f 2- "$own/modules" | xargs -0 -r sh -c 'for path; do
    [ "$(find "./$path" -maxdepth 1 -printf %y)" = d ] || printf "%s " "$path"
done' sh | tr '\n' ' ' | head -c 600)
[ -z "$became" ] || printf 'it leaves out what became of submodules: %s' "$became"
numbers() { git diff --cached --numstat -z --no-renames "$@" "$base" > "$own/numbers"; }
names() { cut -z -f 3- "$own/numbers" | sort -z; }
# Git may take other line ends than the checkout has put there. What is as that left it stays out.
numbers --ignore-cr-at-eol
names > "$own/names"
numbers
names | comm -z -23 - "$own/names" > "$own/ends"
if [ -s "$own/ends" ]; then
    was="$1/tree"
    began() { GIT_INDEX_FILE="$own/began" GIT_WORK_TREE="$own/was" git -C "$own/was" "$@"; }
    if ! [ -d "$was" ]; then
        was="$own/was"
        mkdir "$was"
        began read-tree "$base"
        began checkout-index -z --stdin < "$own/ends"
    fi
    xargs -0 sh -c 'for path; do ! cmp -s "$0/$path" "./$path" || printf "%s\0" "$path"; done' "$was" < "$own/ends" |
        xargs -0 -r git --literal-pathspecs ls-tree -z "$base" -- | git update-index -z --index-info
    numbers
fi
if [ -s "$own/apart" ]; then
    printf 'it leaves out repositories within it: %s' "$(head -n 8 "$own/apart" | cut -c 2- | tr '\n' ' ')"
fi
echo
# All that a program prints, or $1 bytes: then it ends by the closed pipe.
first() {
    most=$1
    shift
    { code=0; "$@" || code=$?; echo $code > "$own/code"; } | head -c "$most" | base64 --wrap=0
    case $(cat "$own/code") in 0 | 125 | 141) echo ;; *) return 1 ;; esac
}
changes() { git diff --cached --full-index --no-renames --no-ext-diff --no-textconv --no-color "$@"; }
# Asked of each file by its own name, whatever that is.
unread() { grep -z '^-' "$own/numbers" | cut -z -f 3- | GIT_LITERAL_PATHSPECS=1 xargs -0 -r git diff --cached --text "$base" --; }
first $((4 << 20)) cat "$own/numbers"
first "$limit" changes --binary "$base"
first "$limit" unread
