# Copies $1, which must hold still for that, and prints the tree that git makes of it.
# Files are taken as $2 says. No user's or group's rights are lent by it.

listed() { (cd "$1" && find . -printf '%P %y %s %T@ %m %l\0' | LC_ALL=C sort -z | sha256sum); }
find . -mindepth 1 -delete
before=$(listed "$1")
mkdir tree
cp --archive --reflink=auto -- "$1/." tree/
find tree -perm /6000 ! -type l -exec chmod ug-s {} +
if [ "$before" != "$(listed "$1")" ]; then echo "error: it changes while it is copied" >&2; exit 1; fi
git init --quiet --bare --template= git
mkdir git/info
printf '%s\n' "$2" > git/info/attributes
export GIT_DIR="$PWD/git" GIT_WORK_TREE="$PWD/tree"
cd tree
apart
git add --all -- .
git write-tree
sync -f .
