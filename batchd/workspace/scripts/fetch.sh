# Follows the branches and tags of $1, which clones call $2, and what it has checked out,
# if that is there; what an earlier fetch did not finish goes. A mirror that a power cut has left
# with empty files, or that git cannot use, is made again: only its whole packs stay, since clones
# of other batches look there.

rm -rf git.new
if [ -d git ]; then find git \( -path 'git/objects/*tmp_*' -o -name '*.lock' \) -type f -delete; fi
if ! (
    [ -z "$(find git -type f -empty)" ] && cd git && export GIT_DIR=. &&
        git for-each-ref --format='%(objecttype)' &&
        git rev-list --objects --no-walk --quiet --glob='refs/batchd/*'
) > /dev/null 2> "$own/broken" || [ -s "$own/broken" ]; then
    git init --quiet --bare --template= "$own/git"
    cp -R "$own/git" git.new
    for index in git/objects/pack/*.idx; do
        ! timeout 60 git verify-pack "$index" || mv "${index%.idx}.pack" "$index" git.new/objects/pack/
    done
    rm -rf git
    mv git.new git
fi
cd git
from=$1
follow() {
    git fetch --quiet --force --prune --update-shallow --no-write-fetch-head --no-auto-maintenance -- "$from" \
        '+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*' "$@"
}
if ! follow '+HEAD:refs/batchd/head' 2> "$own/head"; then
    grep -q 'remote ref HEAD' "$own/head" || { cat "$own/head" >&2; exit 1; }
    follow
    git update-ref -d refs/batchd/head
fi
if [ "$(find objects/pack -name '*.pack' | wc -l)" -gt 20 ]; then
    git repack --quiet -a -d -k
fi
# What a task's .git begins as: its clone is a copy of that, and a checkout.
git init --quiet --template= "$own/clone"
cd "$own/clone/.git"
git config remote.origin.url "$2"
git config remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'
mkdir info
printf '%s\n' "$3" > info/attributes
git --git-dir="$OLDPWD" for-each-ref --format='%(objectname) %(refname)' refs/heads refs/tags |
    sed 's, refs/heads/, refs/remotes/origin/,' > packed-refs
if [ -f "$OLDPWD/shallow" ]; then cp "$OLDPWD/shallow" shallow; fi
cd "$OLDPWD/.."
rm -rf clone.new
cp -R "$own/clone/.git" clone.new
# What a batch begins at is noted durably next.
sync -f .
rm -rf clone
mv clone.new clone
