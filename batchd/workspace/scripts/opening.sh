# Begins each script. What git starts itself for another repository sees the file alone. What
# programs complain of is shown, on descriptor 3, only where the script fails:
# what it prints is read. Their words have room before a disk is full, and some do not say that.

set -eu
own=$(mktemp -d)
printf '%4096s' > "$own/said"
exec 3>&2 2<> "$own/said"
full() {
    stat -f -c '%a %S %d %c' . "$own" | while read -r blocks size left files; do
        [ $((blocks * size)) -ge 65536 ] && { [ "$left" -ge 16 ] || [ "$files" = 0 ]; } || echo 'No space left on device'
    done
}
trap 'code=$?; [ $code = 0 ] || { cat "$own/said"; full; } >&3; rm -rf -- "$own"' EXIT
printf '[safe]\n\tdirectory = *\n' > "$own/config"
export GIT_CONFIG_GLOBAL="$own/config"

# Keeps repositories within the working tree out of the index:
# git would take one for a single thing, or fail.
apart() {
    find . -mindepth 2 -name .git ! -path '*
*' -printf '/%h/\n' | sed 's,^/\./,/,; s/[][*?\\!# ]/\\&/g' > "$own/apart"
    mkdir -p "$GIT_DIR/info"
    cp "$own/apart" "$GIT_DIR/info/exclude"
}
