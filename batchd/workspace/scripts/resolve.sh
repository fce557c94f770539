# Prints the commit that $1 stands for; where there is none, some names that there are.

cd git
name=$1
if [ -z "$name" ]; then set -- refs/batchd/head; else set -- "refs/heads/$name" "refs/tags/$name"; fi
for each; do
    git show-ref --verify --quiet -- "$each" && git rev-parse --verify --quiet "$each^{commit}" && exit
done
case $name in
    *[!0-9a-fA-F]*) ;;
    ????*) git rev-parse --verify --quiet --end-of-options "$name^{commit}" && exit ;;
esac
echo none
git for-each-ref --count=8 --format='%(refname:lstrip=2)' refs/heads refs/tags
