# Makes a clone of $1 at the commit $2 on the branch $3, which lies in the folder $4.
# What an earlier start did not finish goes first.
# Objects are read in the mirror, and none is copied.

find . -mindepth 1 -delete
# Another batch may fetch in this moment, and put another one in its place.
cp -R "$1/clone" .git || { sleep 0.5; rm -rf .git; cp -R "$1/clone" .git; }
printf '%s\n' "$1/git/objects" > .git/objects/info/alternates
mkdir -p ".git/$4"
printf '%s\n' "$2" > ".git/refs/heads/$3"
printf 'ref: refs/heads/%s\n' "$3" > .git/HEAD
git reset --quiet --hard
