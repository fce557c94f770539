"""The application of a task's patch to the repository that it is of: all of it, or nothing.

It runs in the sandbox, where nothing that the repository has git run can reach anything else; and
of the repository's own configuration nothing counts for files:
no hook, filter or program of it runs. What git runs there for its owner, git of the owner's is
asked, outside: it only says that.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchd.errors import WorkspaceError
from batchd.sandbox import Workplace
from batchd.sandbox.command_user import CommandUser, as_root
from batchd.workspace import git

_PATIENCE_S = 300.0
_ASKED_S = 30.0
#: What stands between the words of a setting, for a shell.
_BETWEEN_WORDS = re.compile(r"[\s'\"!=;|&()]+")
#: Of links that lead to links, so many are followed.
_LINKS = 40
_BRANCH = git.text("apply", "apply_branch")
_TREE_IN_PLACE = git.text("apply", "apply_tree")
_REFUSED = "refused: "


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that gets a commit."""

    name: str
    #: Where it begins, if it is new.
    base: str
    author: str
    email: str
    message: str
    #: Whether one that is there already is refused.
    new: bool = False


def obeyed(into: Path) -> bytes:
    """Return patterns of names for grep: what a patch must not change unasked in a repository.

    That are hooks, files with settings and files that settings name, and the links on the way to
    them, as git of the repository's owner finds them: asked for that, outside of the sandbox, it
    runs nothing. Raises ``WorkspaceError`` where it does not say it.
    """
    found, own, way = into.stat(), "~", dict[str, Any]()
    if as_root():
        who = CommandUser.of(found.st_uid, found.st_gid)
        own = f"~{who.name}"
        env = {"HOME": os.path.expanduser(own), "PATH": os.environ.get("PATH", os.defpath)}
        way = {"user": who.uid, "group": who.gid, "extra_groups": (), "env": env}
    argv = ("git", "--git-dir=.git" if (into / ".git").is_dir() else "--git-dir=.")

    def asked(*words: str) -> str:
        try:
            ran = subprocess.run(
                (*argv, *words), cwd=into, capture_output=True, check=True, timeout=_ASKED_S, **way
            )
        except (OSError, subprocess.SubprocessError) as error:
            why = os.fsdecode(getattr(error, "stderr", None) or str(error)).strip()
            raise WorkspaceError(
                f"git does not say what it runs there ({why}): look at the patch, then give --with-hooks"
            ) from error
        return os.fsdecode(ran.stdout)

    def named(base: Path, word: str) -> Path:
        word = own + word[1:] if word.startswith("~/") else word
        return into / base / os.path.expanduser(word)

    hooks = into / asked("rev-parse", "--git-path", "hooks").removesuffix("\n")
    files = list(hooks.glob("*"))
    said = asked("config", "--list", "--includes", "--show-origin", "-z").split("\0")
    for origin, setting in zip(said[::2], said[1::2], strict=False):
        key, _, value = setting.partition("\n")
        if key.startswith("include"):  # also one that is not there yet
            files.append(named(Path(origin.removeprefix("file:")).parent, value))
        elif not key.startswith("alias."):  # runs only when it is asked for
            words = (value, *_BETWEEN_WORDS.split(value))
            files += filter(os.path.lexists, (named(into, word) for word in words))
    ways = [(way, "(/|$)") for way in _ways(hooks)]
    ways += [(way, "$") for file in files for way in _ways(file)]
    patterns = set[str]()
    for each, end in ways:
        if into in each.parents:
            name = each.relative_to(into)
            # A link in a folder's place would lead elsewhere.
            patterns |= {_exactly(name) + end, *(f"{_exactly(above)}$" for above in name.parents)}
    return b"".join(os.fsencode(f"{pattern}\n") for pattern in patterns)


def _ways(path: Path) -> Iterator[Path]:
    """Yield a path, and what it is with one more of the links on the way followed each time."""
    for _ in range(_LINKS):
        yield Path(os.path.normpath(path))
        link = next(filter(os.path.islink, reversed((path, *path.parents))), None)
        if link is None:
            return
        path = link.parent / link.readlink() / path.relative_to(link)


def _exactly(name: Path) -> str:
    return "^" + re.sub(r"[\\.\[{}()*+?^$|]", r"\\\g<0>", str(name))


async def apply(
    place: Workplace, patches: Sequence[bytes], branch: Branch | None, ruled: bytes = b""
) -> str:
    """Put patches into the repository at ``place``, together;
    return what was made: ``commit HASH`` or ``tree HASH``.

    Without a branch they go into the working tree and the index, which must be as HEAD has them.
    ``ruled``: patterns of the names that they may not change. Raises ``WorkspaceError`` where they
    do not fit, with the reason, and ``SandboxError``: then nothing has changed.
    """
    words = [str(word or "") for word in dataclasses.astuple(branch)] if branch else ()
    text = _TREE_IN_PLACE if branch is None else _BRANCH
    sizes = " ".join(str(len(patch)) for patch in patches)
    given = f"ruled={len(ruled)} sizes='{sizes}'\n"
    argv = git.script(given + text, *words)
    ran = await place.run(argv, stdin=b"".join((ruled, *patches)), timeout_s=_PATIENCE_S)
    last = ran.output.strip().rpartition("\n")[2]
    if ran.exit_code and last.startswith(_REFUSED):
        raise WorkspaceError(last.removeprefix(_REFUSED).strip())
    git.insist(ran, "the patch cannot be applied")
    return last
