"""The patch of a task: what it has changed in its clone or copy.

Git is asked in a repository of ours that begins at the mirror's commit and looks at the task's
files, with an empty HOME and /tmp: the task's own ``.git`` has no say in it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from batchd import free_room
from batchd.errors import SandboxError
from batchd.records import Base, Change, Patch
from batchd.sandbox import Workplace
from batchd.sandbox.directory import shown
from batchd.workspace import git

#: Prints what has changed since the commit $2 of the mirror $1, a line each: what it leaves out, in
#: words, or nothing; in base64 the lines by file, the first $3 bytes of the patch, and as much of
#: what is no text in it, as it is. $4 is where a clone's objects lie on this machine,
#: for who looks at it later, empty: it is none; files are taken as $5 says. In the words $6 it is
#: the disk that refuses what is no property of the files.
_CHANGED = f"""
limit=$3 info=.git/objects/info
if [ -n "$4" ] && [ -f $info/alternates ] && ! [ -L .git ] && ! [ -L .git/objects ] && ! [ -L $info ] &&
    ! [ -L $info/alternates ]; then
    printf '%s\\n' "$4/git/objects" > $info/alternates || true
fi
# What the task has closed to itself is its own, and may be read.
find . -path ./.git -prune -o \\( -type d ! -perm -u+rx -o -type f ! -perm -u+r \\) -exec chmod u+rwX {{}} \\;
# Git would wait for what a pipe by such a name says.
if [ -n "$(find . \\( -name .gitattributes -o -name .gitignore \\) -type p -print -quit)" ]; then
    echo 'error: a .gitattributes or .gitignore in it is a pipe' >&2
    exit 1
fi
git init --quiet --bare --template= "$own/git"
export GIT_DIR="$own/git" GIT_WORK_TREE="$PWD"
printf '%s\\n' "$1/git/objects" > "$GIT_DIR/objects/info/alternates"
if [ -f "$1/git/shallow" ]; then cp "$1/git/shallow" "$GIT_DIR/shallow"; fi
{git.APART}
printf '%s\\n' "$5" > "$GIT_DIR/info/attributes"
base=$2
git read-tree "$base"
if ! git add --all --ignore-errors -- .; then
    ! grep -qE ": ($6)\\$" "$own/said" || exit 1
    printf 'not all could be read: %s' "$(grep -v '^warning\\|^hint\\|^ *$' "$own/said" | head -n 3 | tr '\\n' ' ')"
fi
# Git does not look into a submodule's folder, which is empty in a clone; it stays what it was.
git ls-tree -r -z "$base" | grep -z '^160000' > "$own/modules" || true
git update-index -z --index-info < "$own/modules"
became=$(cut -z -f 2- "$own/modules" | xargs -0 -r sh -c 'for path; do
    [ "$(find "./$path" -maxdepth 1 -printf %y)" = d ] || printf "%s " "$path"
done' sh | tr '\\n' ' ' | head -c 600)
[ -z "$became" ] || printf 'it leaves out what became of submodules: %s' "$became"
numbers() {{ git diff --cached --numstat -z --no-renames "$@" "$base" > "$own/numbers"; }}
names() {{ cut -z -f 3- "$own/numbers" | sort -z; }}
# Git may take other line ends than the checkout has put there. What is as that left it stays out.
numbers --ignore-cr-at-eol
names > "$own/names"
numbers
names | comm -z -23 - "$own/names" > "$own/ends"
if [ -s "$own/ends" ]; then
    was="$1/tree"
    began() {{ GIT_INDEX_FILE="$own/began" GIT_WORK_TREE="$own/was" git -C "$own/was" "$@"; }}
    if ! [ -d "$was" ]; then
        was="$own/was"
        mkdir "$was"
        began read-tree "$base"
        began checkout-index -z --stdin < "$own/ends"
    fi
    xargs -0 sh -c 'for path; do ! cmp -s "$0/$path" "./$path" || printf "%s\\0" "$path"; done' "$was" < "$own/ends" |
        xargs -0 -r git --literal-pathspecs ls-tree -z "$base" -- | git update-index -z --index-info
    numbers
fi
if [ -s "$own/apart" ]; then
    printf 'it leaves out repositories within it: %s' "$(head -n 8 "$own/apart" | cut -c 2- | tr '\\n' ' ')"
fi
echo
# All that a program prints, or $1 bytes: then it ends by the closed pipe.
first() {{
    most=$1
    shift
    {{ code=0; "$@" || code=$?; echo $code > "$own/code"; }} | head -c "$most" | base64 --wrap=0
    case $(cat "$own/code") in 0 | 125 | 141) echo ;; *) return 1 ;; esac
}}
changes() {{ git diff --cached --full-index --no-renames --no-ext-diff --no-textconv --no-color "$@"; }}
# Asked of each file by its own name, whatever that is.
unread() {{ grep -z '^-' "$own/numbers" | cut -z -f 3- | GIT_LITERAL_PATHSPECS=1 xargs -0 -r git diff --cached --text "$base" --; }}
first $((4 << 20)) cat "$own/numbers"
first "$limit" changes --binary "$base"
first "$limit" unread
"""
#: How the changes of each file begin; no line within them does.
_HEAD = b"diff --git "
_HEADS = re.compile(rb"^diff --git .*$", re.MULTILINE)
_SIGN = re.compile(rb"^[ +-]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Read:
    """What git has printed."""

    #: What it leaves out, in words; empty: nothing.
    lacks: str
    changes: tuple[Change, ...]
    data: bytes
    #: What is no text in it, as it is.
    rest: bytes


async def changed(
    place: Workplace, base: Base, most: int, timeout_s: float = 120.0, *, secret: bool = True
) -> Patch:
    """Return what a task has changed; ``most``: the size of the patch, in bytes.

    Raises ``SandboxError``, ``FolderError``.

    No process of the task's may run any more.
    ``secret``: whether it has secrets that the patch may hold.
    """
    later = base.mirror if base.origin.kind == "clone" else ""
    words = (place.base, base.commit, str(most + 1), later, git.ATTRIBUTES, free_room.WORDS)
    argv = git.script(_CHANGED, *words)
    async with place.apart() as apart:
        ran = await apart.run(
            argv,
            timeout_s=timeout_s,
            max_output_bytes=((most + 1) * 8 // 3 + (4 << 20)),
            masked=False,
        )
    if ran.exit_code or ran.timed_out or ran.excess or ran.cut:
        why = ran.excess or ("it takes too long" if ran.timed_out else "")
        why = why or ("there are too many changes" if ran.cut else "")
        if not why and free_room.refused(ran.output):
            raise git.failure("its patch cannot be made", ran.output, ran.exit_code)
        return Patch(problem=why or place.masker.text(git.said(ran.output, ran.exit_code)))
    try:
        read = _read(ran.output)
    except (ValueError, binascii.Error) as error:
        raise SandboxError(f"git has printed no patch: {error}") from error
    data, left_out = _whole(read, most)
    # What is no text and cannot be looked through to its end may hold one.
    withheld = secret and (
        len(read.rest) > most or any(_holds_secret(place, each) for each in (data, read.rest))
    )
    mask = place.masker.text
    changes = tuple(
        Change(path=mask(c.path), added=c.added, removed=c.removed) for c in read.changes
    )
    return Patch(
        changes=changes,
        data=data,
        left_out=tuple(map(mask, left_out)),
        withheld=withheld,
        lacks=mask(read.lacks),
    )


def _read(output: str) -> _Read:
    lacks, numbers, patch, rest = output.split("\n")[:4]
    fields = base64.b64decode(numbers, validate=True).split(b"\0")
    return _Read(
        lacks=lacks.strip(),
        changes=tuple(_change(field) for field in fields if field),
        data=base64.b64decode(patch, validate=True),
        rest=base64.b64decode(rest, validate=True),
    )


def _change(field: bytes) -> Change:
    added, removed, path = field.split(b"\t", 2)
    return Change(
        path=shown(path.decode("utf-8", "surrogateescape")),
        added=None if added == b"-" else int(added),
        removed=None if removed == b"-" else int(removed),
    )


def _whole(read: _Read, most: int) -> tuple[bytes, tuple[str, ...]]:
    """Return as much of a patch as is whole, and the files whose changes are left out.

    Git prints files in the order in which it counts their lines.
    """
    data = read.data
    if len(data) <= most:
        return data, ()
    # A file that became a link, or the reverse, has two heads, one behind the other.
    starts, before = [], b""
    for head in _HEADS.finditer(data):
        if head[0] != before:
            starts.append(head.start())
        before = head[0]
    # The last one may be cut.
    whole = max((n for n, start in enumerate(starts) if start <= most), default=0)
    return data[: starts[whole]] if starts else b"", tuple(c.path for c in read.changes[whole:])


def _holds_secret(place: Workplace, data: bytes) -> bool:
    # A sign stands before each line, and would be a part of what is in base64 in lines.
    texts = (each.decode("utf-8", "replace") for each in (data, _SIGN.sub(b"", data)))
    return any(place.masker.text(text) != text for text in texts)
