"""Clones and copies for tasks, the patches that come of them,
and where these go; as the user who runs the tests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import shlex
import shutil
import signal
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import patience
import pytest
from patience import PATIENCE_S
from repositories import commit, git, give_away, needs_git, repository

from batchd import processes
from batchd.errors import WorkspaceError
from batchd.masking import Masker
from batchd.records import Base, Origin, Patch, SandboxPolicy
from batchd.sandbox import Sandbox, Workplace
from batchd.store import stored_values
from batchd.workspace import applying, clones, fetching, patches
from batchd.workspace.fetching import FetchJob, FetchOutcome
from batchd.workspace.mirrors import Mirror, Pin

pytestmark = [needs_git, pytest.mark.in_turns]

FILES: Mapping[str, str | bytes] = {
    "README.md": "one\ntwo\nthree\n",
    "src/a.py": "print(1)\n",
    "gone.txt": "x\n",
    "old.bin": bytes(range(256)),
    ".gitignore": "*.log\n",
}
_LARGE = 10 << 20


def origin_of(source: Path | str, ref: str = "", *, kind: str = "clone") -> Origin:
    """Return what a task asks for."""
    return Origin(kind=kind, source=str(source), ref=ref)  # type: ignore[arg-type]


def message(job: FetchJob) -> bytes:
    """Return a job as the daemon's child reads it."""
    body = msgspec.json.encode(job)
    return processes.HEAD.pack(False, len(body)) + body


def answer(said: IO[bytes]) -> bytes:
    """Return what that says next."""
    bug, length = processes.HEAD.unpack(said.read(processes.HEAD.size))
    assert not bug
    return said.read(length)


async def fetched(folder: Path, origin: Origin, *, fetch: bool = True, **more: Any) -> Base:
    """Have a mirror hold what is asked for, as the daemon's child does.

    Raises ``WorkspaceError``.
    """
    kept = folder / "mirrors/it/kept"
    kept.parent.mkdir(parents=True, exist_ok=True)
    job = FetchJob(
        origin=origin,
        kept=str(kept),
        fetch=fetch,
        policy=more.pop("policy", SandboxPolicy()),
        timeout_s=PATIENCE_S,
        max_bytes=more.pop("max_bytes", 1 << 30),
    )
    branch = "batchd/b/001" if origin.kind == "clone" else ""
    return Base(origin=origin, mirror=str(kept), commit=await fetching.fetched(job), branch=branch)


def work(
    folder: Path,
    origin: Origin,
    command: str,
    *,
    most: int = _LARGE,
    masker: Masker | None = None,
    body: Callable[[Workplace], Awaitable[Any]] | None = None,
) -> Patch:
    """Let a command work in a task's clone or copy; return what it has changed there."""

    async def visit() -> Patch:
        base = await fetched(folder, origin)
        state = folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        async with await Sandbox(SandboxPolicy()).open(
            str(folder / "001"),
            fresh=True,
            network=False,
            env={},
            base=base.mirror,
            tmp=str(state / "tmp/1"),
            masker=masker,
        ) as place:
            await clones.make(place, base, PATIENCE_S)
            ran = await place.shell(command, timeout_s=PATIENCE_S)
            assert ran.exit_code == 0, ran.output
            if body is not None:
                await body(place)
            return await patches.changed(place, base, most)

    return asyncio.run(visit())


def put(
    folder: Path, *patches: bytes, branch: applying.Branch | None = None, ruled: bytes = b""
) -> str:
    """Apply patches to a repository."""

    async def visit() -> str:
        async with await Sandbox(SandboxPolicy(sets_ids=True)).open(
            str(folder), fresh=False, network=False, env={}
        ) as place:
            return await applying.apply(place, patches, branch, ruled)

    return asyncio.run(visit())


def apply_by_hand(folder: Path, patch: bytes) -> None:
    """Apply a patch to a working tree and its index."""
    git(folder, "update-index", "-q", "--refresh")  # owners have changed since it was made
    git(folder, "apply", "--index", "-", stdin=patch)


def lines(patch: Patch) -> dict[str, tuple[int | None, int | None]]:
    """Return the lines that came and went, by file."""
    return {change.path: (change.added, change.removed) for change in patch.changes}


def test_a_clone_is_a_repository_on_a_branch_of_its_own(tmp_path: Path) -> None:
    """At the commit that was asked for, with the branches and tags of its origin,
    no object copied, and nothing else.
    """
    source = repository(tmp_path / "r", FILES)
    git(source, "tag", "v1")
    git(source, "branch", "batchd")  # a name like the first part of ours
    first = git(source, "rev-parse", "HEAD")
    commit(source, {"new": "n"})
    give_away(source)
    seen = []

    async def body(place: Workplace) -> None:
        ask = (
            "git rev-parse HEAD; git branch --show-current; git status --porcelain; "
            "git for-each-ref --format='%(refname)'; find .git/objects -type f | grep -v alternates; ls .git/hooks"
        )
        seen.append((await place.shell(ask, timeout_s=PATIENCE_S)).output.splitlines())

    work(tmp_path, origin_of(source, "v1"), "true", body=body)
    assert seen[0][:2] == [first, "batchd/b/001"]
    assert seen[0][2:-1] == [
        "refs/heads/batchd/b/001",
        "refs/remotes/origin/batchd",
        "refs/remotes/origin/main",
        "refs/tags/v1",
    ]
    assert "No such file" in seen[0][-1]


def test_a_patch_is_all_that_has_changed(tmp_path: Path) -> None:
    """Committed or not, binary, with modes, links and names that are no UTF-8;
    what is ignored stays out.

    It makes the same tree elsewhere.
    """
    source = repository(tmp_path / "r", FILES)
    change = (
        "printf 'one\\n2\\nthree\\nfour\\n' > README.md; rm gone.txt; chmod +x src/a.py; ln -s README.md link;"
        " head -c 3000 /dev/urandom > new.bin; printf x > \"$(printf 'n\\377me')\"; echo y > out.log;"
        " git -c user.name=m -c user.email=m@m commit -qam half; mkdir 'a b'; echo z > 'a b/é'; printf 'no end' > end"
    )
    patch = work(tmp_path, origin_of(source), change)
    assert lines(patch) == {
        "README.md": (2, 1),
        "a b/é": (1, 0),
        "end": (1, 0),
        "gone.txt": (0, 1),
        "link": (1, 0),
        "new.bin": (None, None),
        "n\\xffme": (1, 0),
        "src/a.py": (0, 0),
    }
    assert patch.problem == ""
    apply_by_hand(source, patch.data)
    there = tmp_path / "001"
    git(there, "add", "-A")
    assert git(source, "write-tree") == git(there, "write-tree")


def test_a_patch_does_not_depend_on_what_the_task_made_of_git(tmp_path: Path) -> None:
    """It has thrown .git away, or planted what git would run, hide or alter;
    nothing of that runs or counts.
    """
    source = repository(tmp_path / "r", FILES)
    hostile = (
        "mkdir h; printf '#!/bin/sh\\ntouch /task/ran\\n' > h/x; chmod +x h/x; echo '* filter=evil diff=evil' > .gitattributes;"
        " for k in filter.evil.clean filter.evil.process diff.evil.command diff.evil.textconv core.fsmonitor diff.external"
        " core.sshCommand core.pager; do git config $k /task/h/x; done; git config core.hooksPath /task/h; cp h/x h/post-index-change;"
        " mkdir -p .git/info; echo '*' > .git/info/exclude; git config core.excludesFile /task/.gitattributes; git config core.worktree /tmp;"
        " git update-index --assume-unchanged README.md; echo four >> README.md; rm -f ran; touch end"
    )
    patch = work(tmp_path, origin_of(source), hostile)
    assert lines(patch)["README.md"] == (1, 0)
    assert {"end", "h/x", ".gitattributes"} <= lines(patch).keys()
    assert not (tmp_path / "001/ran").exists()
    patch = work(tmp_path / "2", origin_of(source), "rm -rf .git; echo four >> README.md")
    assert lines(patch) == {"README.md": (1, 0)}
    patch = work(
        tmp_path / "3", origin_of(source), "rm -rf .git; ln -s /etc .git; echo 5 > README.md"
    )
    assert lines(patch) == {"README.md": (1, 3)}


def test_a_patch_that_is_too_large_leaves_out_whole_files(tmp_path: Path) -> None:
    """What is there can be applied; which files are left out is said."""
    source = repository(tmp_path / "r", FILES)
    make = "for n in 1 2 3 4; do seq 1000 > $n.txt; done; rm README.md"
    patch = work(tmp_path, origin_of(source), make, most=11_000)
    assert list(lines(patch)) == ["1.txt", "2.txt", "3.txt", "4.txt", "README.md"]
    assert patch.left_out == ("3.txt", "4.txt", "README.md")
    apply_by_hand(source, patch.data)
    assert git(source, "diff", "--cached", "--name-only").splitlines() == ["1.txt", "2.txt"]
    patch = work(tmp_path / "2", origin_of(source), make, most=1000)
    assert (patch.data, len(patch.left_out)) == (b"", 5)


def test_a_patch_with_a_secret_is_withheld(tmp_path: Path) -> None:
    """It is whole, and marked: a masked one would put something else into the repository."""
    source = repository(tmp_path / "r", FILES)
    masker = Masker(known=["hunter2-hunter2"])
    patch = work(tmp_path, origin_of(source), "echo hunter2-hunter2 >> README.md", masker=masker)
    assert patch.withheld
    assert b"hunter2-hunter2" in patch.data
    assert not work(tmp_path / "2", origin_of(source), "echo 4 > README.md", masker=masker).withheld


def test_a_copy_is_all_that_lies_in_a_directory(tmp_path: Path) -> None:
    """Modes, times, links, empty folders; setgid folders and setuid files, but lending no rights;
    its patch is made without any git of its own, and the directory stays as it is.
    """
    source = tmp_path / "d"
    (source / "empty").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o750)
    os.utime(source / "run.sh", (1_000_000_000, 1_000_000_000))
    (source / "link").symlink_to("run.sh")
    (source / "su").touch()
    give_away(source)
    (source / "empty").chmod(0o2770)
    (source / "su").chmod(0o6755)
    seen = []

    async def body(place: Workplace) -> None:
        ask = "stat -c '%n %a %Y' run.sh; stat -c %a empty su; readlink link; ls -A; ls -A empty"
        seen.append((await place.shell(ask, timeout_s=PATIENCE_S)).output.splitlines())

    asked = origin_of(source, kind="copy")
    patch = work(tmp_path, asked, "true", body=body)
    modes = ["run.sh 750 1000000000", "770", "755"]
    assert seen[0] == [*modes, "run.sh", "empty", "link", "run.sh", "su"]
    assert patch == Patch()
    patch = work(tmp_path / "2", asked, "echo more >> run.sh; rm link")
    assert lines(patch) == {"link": (0, 1), "run.sh": (1, 0)}
    assert (source / "run.sh").read_text() == "#!/bin/sh\n"
    assert put_beside(source, patch.data) == "#!/bin/sh\nmore\n"


def put_beside(source: Path, patch: bytes) -> str:
    """Apply a patch by hand, and return what has become of a file."""
    git(source, "apply", "-", stdin=patch)
    return (source / "run.sh").read_text()


def test_a_batch_may_fetch_again_and_keeps_what_others_began_at(tmp_path: Path) -> None:
    """A branch that was moved, or is gone, takes no commit with it:
    clones of earlier batches still read it.
    """
    source = repository(tmp_path / "r", FILES)
    before = asyncio.run(fetched(tmp_path, origin_of(source)))
    git(source, "commit", "--amend", "-q", "-m", "another")
    give_away(source)
    after = asyncio.run(fetched(tmp_path, origin_of(source)))
    assert before.commit != after.commit
    again = origin_of(source, before.commit)
    assert asyncio.run(fetched(tmp_path, again, fetch=False)).commit == before.commit


def _without_contents(kept: Path, what: str) -> None:
    for path in [path for path in kept.glob(what) if path.is_file()]:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: (_without_contents(kept, "git/HEAD"), _without_contents(kept, "git/config")),
        lambda kept: (kept / "git/HEAD").unlink(),
        lambda kept: _without_contents(kept, "git/refs/*/*"),
        lambda kept: (kept / "git/refs/heads/main").write_bytes(bytes(41)),
        lambda kept: _without_contents(kept, "git/objects/pack/*.pack"),
        lambda kept: [path.unlink() for path in kept.glob("git/objects/pack/*")],
        lambda kept: shutil.rmtree(kept / "git"),
        lambda kept: [shutil.rmtree(kept / "clone"), (kept / "git/refs/heads/main.lock").touch()],
    ],
    ids=["config", "head", "refs", "ref", "packs", "no packs", "nothing", "lock"],
)
def test_a_mirror_that_a_power_cut_has_broken_is_made_again(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """What is whole of its objects stays: clones of earlier batches are lost without them."""
    source = repository(tmp_path / "r", FILES)
    before = asyncio.run(fetched(tmp_path, origin_of(source)))
    git(source, "commit", "--amend", "-q", "-m", "another")
    give_away(source)
    kept = Path(before.mirror)
    packs = {path: path.read_bytes() for path in kept.glob("git/objects/pack/*.pack")}
    for path in kept.glob("git/objects/pack/*"):
        path.chmod(0o644)
    damage(kept)
    give_away(kept)
    whole = all(path.is_file() and path.read_bytes() == packs[path] for path in packs)
    patch = work(tmp_path, origin_of(source), "echo four >> README.md")
    assert lines(patch) == {"README.md": (1, 0)}
    again = fetched(tmp_path, origin_of(source, before.commit), fetch=False)
    if whole:
        assert asyncio.run(again).commit == before.commit
    else:
        again.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("kind", ["clone", "copy"])
def test_a_mirror_is_on_the_disk_before_it_counts(tmp_path: Path, kind: str) -> None:
    """All of its disk is synced before a clone's beginning gets its name, and before the end."""
    source = repository(tmp_path / "r", FILES)
    said = tmp_path / "calls"
    job = FetchJob(
        origin=origin_of(source, kind=kind),
        kept=str(tmp_path / "mirrors/it/kept"),
        fetch=True,
        policy=SandboxPolicy(),
        timeout_s=PATIENCE_S,
        max_bytes=1 << 30,
    )
    (tmp_path / "mirrors/it").mkdir(parents=True)
    calls = "trace=syncfs,rename,renameat,renameat2,write"
    child = ("sh", "-c", 'exec "$@" $PPID', "sh", *processes.module("batchd.workspace.fetching"))
    done = subprocess.run(
        ["strace", "-f", "-o", str(said), "-e", calls, *child],
        input=message(job),
        capture_output=True,
        check=True,
    )
    answers = io.BytesIO(done.stdout)
    assert answer(answers) == b""  # it is ready
    assert json.loads(answer(answers))["commit"], done
    seen = said.read_text(errors="replace").splitlines()
    synced = max(n for n, line in enumerate(seen) if "syncfs(" in line and line.endswith("= 0"))
    named = [n for n, line in enumerate(seen) if "rename" in line and '"clone"' in line]
    assert len(named) == (kind == "clone")
    assert all(synced < n for n in named)
    assert synced < max(n for n, line in enumerate(seen) if "write(1" in line and "commit" in line)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: git(r, "init", "-q"), "it has no branch, tag or commit for a commit|couldn't find remote ref HEAD"),
        (lambda r: (git(r, "init", "-q"), (r / ".git/HEAD").write_text("junk")), "cannot be cloned"),
        (lambda r: r.mkdir(exist_ok=True), "cannot be cloned"),
    ],
    ids=["empty", "broken", "none"],
)  # fmt: skip
def test_what_cannot_be_cloned_says_why(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    """No commit, no repository: an error in words, and not a clone of something else."""
    (tmp_path / "r").mkdir()
    make(tmp_path / "r")
    give_away(tmp_path / "r")
    with pytest.raises(WorkspaceError, match=words):
        asyncio.run(fetched(tmp_path, origin_of(tmp_path / "r")))


def test_a_ref_that_is_not_there_names_some_that_are(tmp_path: Path) -> None:
    """Also one that begins as an option does, or as git's own words for others do."""
    source = repository(tmp_path / "r", FILES)
    for ref in ("nope", "--all", "HEAD~0", "main^{tree}", "batchd/head", "deadbeef"):
        with pytest.raises(WorkspaceError, match=r"no branch, tag or commit for the ref .*main"):
            asyncio.run(fetched(tmp_path, origin_of(source, ref)))


def test_a_repository_that_is_too_large_is_not_cloned(tmp_path: Path) -> None:
    """Its mirror has a limit."""
    source = repository(tmp_path / "r", {"large": os.urandom(8 << 20)})
    with pytest.raises(WorkspaceError, match="max_mirror_bytes"):
        asyncio.run(fetched(tmp_path, origin_of(source), max_bytes=1 << 20))


def test_a_mirror_does_not_grow_beyond_its_limit(tmp_path: Path) -> None:
    """Fetched bit by bit neither: all that lies there counts."""
    source = repository(tmp_path / "r", {"large": os.urandom(1 << 20)})
    for _ in range(2):
        asyncio.run(fetched(tmp_path, origin_of(source), max_bytes=3 << 20))
        commit(source, {"large": os.urandom(1 << 20)})
        give_away(source)
    with pytest.raises(WorkspaceError, match="max_mirror_bytes"):
        asyncio.run(fetched(tmp_path, origin_of(source), max_bytes=3 << 20))


def test_a_file_that_becomes_a_link_is_left_out_whole_or_not(tmp_path: Path) -> None:
    """Git prints such a change as two: neither half is kept without the other."""
    source = repository(tmp_path / "r", {**FILES, "b": "x\n" * 200})
    change = "rm b; ln -s README.md b; for n in c d; do seq 2000 > $n; done"
    patch = work(tmp_path, origin_of(source), change, most=9_000)
    assert patch.left_out == ("c", "d")
    apply_by_hand(source, patch.data)
    assert (source / "b").is_symlink()
    patch = work(tmp_path / "2", origin_of(source), change, most=300)
    assert (patch.data, patch.left_out) == (b"", ("b", "c", "d"))


def test_a_patch_goes_in_whole_or_not_at_all(tmp_path: Path) -> None:
    """Into a clean tree, moved on or not; one with changes of its own,
    a conflict or a file in the way is left as it is.
    """
    source = repository(tmp_path / "r", FILES)
    patch = work(tmp_path, origin_of(source), "echo four >> README.md; echo n > new; rm gone.txt")
    before = git(source, "status", "--porcelain", "--untracked-files=all")
    (source / "src/a.py").write_text("print(2)\n")
    with pytest.raises(WorkspaceError, match=r"changes of its own: src/a\.py"):
        put(source, patch.data)
    git(source, "checkout", "-q", "src/a.py")
    (source / "new").write_text("mine\n")
    with pytest.raises(WorkspaceError, match="new"):
        put(source, patch.data)
    assert (source / "new").read_text() == "mine\n"
    assert git(source, "status", "--porcelain") == "?? new"
    (source / "new").unlink()
    commit(source, {"README.md": "ONE\ntwo\nTHREE\n"})
    give_away(source)
    with pytest.raises(WorkspaceError, match=r"does not fit .*README\.md"):
        put(source, patch.data)
    assert git(source, "status", "--porcelain", "--untracked-files=all") == before == ""
    commit(source, {"README.md": "ONE\ntwo\nthree\n"})
    give_away(source)
    assert put(source, patch.data).startswith("tree ")
    assert (source / "README.md").read_text() == "ONE\ntwo\nthree\nfour\n"
    assert git(source, "diff", "--cached", "--name-status").split() == [
        *("M", "README.md", "D", "gone.txt", "A", "new")
    ]
    assert not (source / ".git/batchd-apply").exists()


def test_a_patch_goes_on_a_branch_beside_what_is_checked_out(tmp_path: Path) -> None:
    """A new branch begins where the task began; a second task's is a commit on top.

    Refused, the branch stays as it was.
    """
    source = repository(tmp_path / "r", FILES)
    base = git(source, "rev-parse", "HEAD")
    one = work(tmp_path, origin_of(source), "echo four >> README.md")
    two = work(tmp_path / "2", origin_of(source), "echo n > new")
    commit(source, {"later": "l"})
    give_away(source)
    branch = applying.Branch("wip", base, "Ann", "ann@example.org", "What it says\n\nmore")
    for patch in (one, two):
        assert put(source, patch.data, branch=branch).startswith("commit ")
    assert git(source, "log", "--format=%an %s", "wip").splitlines()[:2] == [
        "Ann What it says",
        "Ann What it says",
    ]
    assert git(source, "rev-parse", "wip~2") == base
    assert git(source, "status", "--porcelain") == ""
    tip = git(source, "rev-parse", "wip")
    with pytest.raises(WorkspaceError, match="does not fit"):
        put(
            source,
            b"diff --git a/no b/no\n--- a/no\n+++ b/no\n@@ -1 +1 @@\n-x\n+y\n",
            branch=branch,
        )
    with pytest.raises(WorkspaceError, match="checked out"):
        put(source, one.data, branch=applying.Branch("main", base, "A", "a@b", "m"))
    with pytest.raises(WorkspaceError, match="not a name for a branch"):
        put(source, one.data, branch=applying.Branch("a..b", base, "A", "a@b", "m"))
    assert git(source, "rev-parse", "wip") == tip


def test_a_branch_that_another_working_tree_is_on_stays(tmp_path: Path) -> None:
    """Checked out there, or in the middle of a rebase: what git itself refuses to move."""
    source = repository(tmp_path / "r", FILES)
    base = git(source, "rev-parse", "HEAD")
    patch = work(tmp_path, origin_of(source), "echo four >> README.md")
    git(source, "worktree", "add", "-q", "-b", "topic", str(tmp_path / "topic"))
    git(source, "worktree", "add", "-q", "--detach", str(tmp_path / "other"))
    git(source, "branch", "rebased")
    (source / ".git/worktrees/other/rebase-merge").mkdir()
    (source / ".git/worktrees/other/rebase-merge/head-name").write_text("refs/heads/rebased\n")
    (source / ".git/worktrees/other/rebase-merge/onto").write_text(f"{base}\n")
    give_away(source)
    for name in ("topic", "rebased"):
        with pytest.raises(WorkspaceError, match=f"'{name}' .* at .*name another branch"):
            put(source, patch.data, branch=applying.Branch(name, base, "A", "a@b", "m"))
        assert git(source, "rev-parse", name) == base
    git(source, "branch", "free")
    give_away(source)
    put(source, patch.data, branch=applying.Branch("free", base, "A", "a@b", "m"))
    assert git(source, "reflog", "free").count("\n") == 1


def test_a_shared_repository_stays_its_groups(tmp_path: Path) -> None:
    """Folders that `apply` makes in it are the group's, and setgid, as git has them there;
    a task that works in it can commit.
    """
    source = repository(tmp_path / "r", FILES)
    patch = work(tmp_path, origin_of(source), "seq 9 > n; seq 9 >> README.md").data
    git(source, "config", "core.sharedRepository", "group")
    folders = [path for path in (source / ".git").rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o2775)
    base = git(source, "rev-parse", "HEAD")
    branch = applying.Branch("feature/x", base, "Ann", "ann@example.org", "Notes")
    put(source, patch, branch=branch)
    made = [path for path in (source / ".git").rglob("*") if path.is_dir()]
    assert len(made) > len(folders)
    assert {oct(path.stat().st_mode & 0o7777) for path in made} == {"0o2775"}

    async def commits() -> str:
        async with await Sandbox(SandboxPolicy()).open(
            str(source), fresh=False, network=False, env={}
        ) as place:
            words = "echo 1 > more; git add -A; git commit -qm more 2>&1; git status --short"
            return (await place.shell(words, timeout_s=PATIENCE_S)).output

    assert asyncio.run(commits()) == ""
    assert git(source, "log", "-1", "--format=%s") == "more"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cut", ["before", "in the middle", "at the end"])
def test_an_apply_that_was_cut_short_is_brought_to_its_end(tmp_path: Path, cut: str) -> None:
    """Killed while it wrote files: the next one finishes;
    what somebody has changed since is not overwritten.
    """
    source = repository(tmp_path / "r", FILES)
    patch = work(tmp_path, origin_of(source), "echo four >> README.md; echo n > new; rm gone.txt")
    head = git(source, "rev-parse", "HEAD")
    note = f"{head} {hashlib.sha256(patch.data).hexdigest()}\n"
    (source / ".git/batchd-apply").write_text(note)
    (source / ".git/index.lock").write_text("")
    if cut != "before":
        (source / "README.md").write_text("one\ntw")
        (source / "gone.txt").unlink()
    if cut == "at the end":
        (source / "README.md").write_text("one\ntwo\nthree\nfour\n")
        (source / "new").write_text("n\n")
    give_away(source)
    (source / "src/a.py").write_text("mine\n")
    with pytest.raises(WorkspaceError, match=r"since it was cut short: src/a\.py"):
        put(source, patch.data)
    git(source, "checkout", "-q", "src/a.py")
    give_away(source)
    put(source, patch.data)
    assert (source / "README.md").read_text() == "one\ntwo\nthree\nfour\n"
    assert git(source, "diff", "--name-only") == ""
    assert git(source, "diff", "--cached", "--name-only").split() == [
        "README.md",
        "gone.txt",
        "new",
    ]
    assert not (source / ".git/batchd-apply").exists()


def test_nothing_that_a_repository_has_git_run_runs(tmp_path: Path) -> None:
    """Hooks, filters, a monitor of files, of the repository that is cloned and applied to;
    its alternates are not followed.
    """
    source = repository(
        tmp_path / "r", {**FILES, ".gitattributes": "* filter=evil diff=evil merge=evil\n"}
    )
    ran = source / "ran"
    program = source / ".git/evil"
    program.write_text(f"#!/bin/sh\ntouch '{ran}' /task/ran /base/ran\ncat\n")
    program.chmod(0o755)
    for key in (
        *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.command"),
        *("diff.evil.textconv", "merge.evil.driver", "core.fsmonitor", "core.sshCommand"),
        *(
            "uploadpack.packObjectsHook",
            "diff.external",
            "core.alternateRefsCommand",
            "gpg.program",
        ),
    ):
        git(source, "config", key, "/task/.git/evil" if "filter" in key else str(program))
    for name in (
        *("post-checkout", "post-merge", "pre-commit", "post-commit", "reference-transaction"),
        *("post-index-change", "pre-auto-gc", "post-applypatch", "pre-applypatch", "post-update"),
    ):
        (source / ".git/hooks").mkdir(exist_ok=True)
        (source / ".git/hooks" / name).symlink_to("../evil")
    give_away(source)
    base = (source / ".git/refs/heads/main").read_text().strip()
    patch = work(tmp_path, origin_of(source), "echo four >> README.md")
    assert lines(patch) == {"README.md": (1, 0)}
    applying.obeyed(source)
    put(source, patch.data, branch=applying.Branch("wip", base, "A", "a@b", "m"))
    put(source, patch.data)
    assert not ran.exists()
    assert not (tmp_path / "001/ran").exists()
    (source / ".git/objects/info").mkdir(exist_ok=True)
    (source / ".git/objects/info/alternates").write_text("/etc\n")
    with pytest.raises(WorkspaceError, match="borrows objects"):
        asyncio.run(fetched(tmp_path, origin_of(source)))


def test_a_patch_that_leads_outside_writes_nothing_there(tmp_path: Path) -> None:
    """By ``..``, through a link, into .git: git refuses each, and the repository is as it was."""
    source = repository(tmp_path / "r", FILES)
    (source / "out").symlink_to(tmp_path)
    commit(source, {})
    give_away(source)
    head = git(source, "rev-parse", "HEAD")
    for name in ("../evil", "out/evil", ".git/hooks/post-commit", ".GIT/config", "a/../../evil"):
        patch = f"diff --git a/{name} b/{name}\nnew file mode 100755\n--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+x\n"
        with pytest.raises(WorkspaceError):
            put(source, patch.encode())
        with pytest.raises(WorkspaceError):
            put(source, patch.encode(), branch=applying.Branch("wip", head, "A", "a@b", "m"))
    assert not (tmp_path / "evil").exists()
    assert not list((source / ".git").glob("hooks/post-commit"))
    assert git(source, "status", "--porcelain") == ""


def test_files_that_git_does_not_know_are_not_overwritten(tmp_path: Path) -> None:
    """Ignored ones neither: a patch that makes a file, or a folder,
    in their place is refused with their names.
    """
    source = repository(tmp_path / "r", {**FILES, ".gitignore": ".env\nbuild/\nsrc/*.o\nway\n"})
    for name, text in (
        (".env", "KEY=1\n"),
        ("build/data", "d\n"),
        ("src/a.o", "o\n"),
        ("way", "w\n"),
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    give_away(source)
    every = {
        path: path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }
    for number, (change, name) in enumerate(
        (
            ("echo model > .env", r"\.env"),
            ("echo f > build", "build/data"),
            ("rm -r src; echo f > src", r"src/a\.o"),
            ("mkdir way; echo f > way/in", "way"),
        )
    ):
        command = f": > .gitignore; {change}"
        patch = work(tmp_path / str(number), origin_of(source), command)
        with pytest.raises(WorkspaceError, match=f"files of your own are in the way: {name}"):
            put(source, patch.data)
        found = {
            path: path.read_bytes()
            for path in source.rglob("*")
            if path.is_file() and ".git" not in path.parts
        }
        assert found == every


def test_a_patch_that_cannot_be_written_to_its_end_is_taken_back(tmp_path: Path) -> None:
    """A folder in the middle takes no change:
    what was written before it is as it was, and it can be tried again.
    """
    source = repository(tmp_path / "r", FILES)
    change = "echo four >> README.md; echo x >> src/a.py; echo z > zz; echo n > aa; rm gone.txt"
    patch = work(tmp_path, origin_of(source), change)
    (source / "src").chmod(0o555)
    with pytest.raises(WorkspaceError, match=r"src/a\.py.*all is as it was"):
        put(source, patch.data)
    assert git(source, "status", "--porcelain") == ""
    assert not (source / ".git/batchd-apply").exists()
    give_away(source)
    (source / "src").chmod(0o755)
    put(source, patch.data)
    assert (source / "zz").read_text() == "z\n"


def test_an_edit_that_git_was_told_not_to_look_at_stays(tmp_path: Path) -> None:
    """A local setting, by ``--assume-unchanged``: a patch of it is refused before anything is
    written, and no failure, nor the end of one that was cut short, touches what no patch names.
    """
    source = repository(tmp_path / "r", {**FILES, "conf.ini": "a\n", "lib/x": "x\n"})
    git(source, "update-index", "--assume-unchanged", "conf.ini")
    (source / "conf.ini").write_text("mine\n")
    give_away(source)
    same = work(tmp_path, origin_of(source), "echo b > conf.ini; echo four >> README.md")
    with pytest.raises(WorkspaceError, match=r"conf\.ini.*nothing was written"):
        put(source, same.data)
    (source / "lib").chmod(0o555)
    other = work(tmp_path / "2", origin_of(source), "echo four >> README.md; echo b > lib/b")
    with pytest.raises(WorkspaceError, match="all is as it was"):
        put(source, other.data)
    assert git(source, "status", "--porcelain") == ""
    (source / "lib").chmod(0o755)
    note = f"{git(source, 'rev-parse', 'HEAD')} {hashlib.sha256(other.data).hexdigest()}\n"
    (source / ".git/batchd-apply").write_text(note)
    (source / "README.md").write_text("one\ntw")
    give_away(source)
    put(source, other.data)
    assert git(source, "diff", "--cached", "--name-only").split() == ["README.md", "lib/b"]
    assert git(source, "diff", "--name-only") == ""
    assert (source / "conf.ini").read_text() == "mine\n"
    assert git(source, "ls-files", "-v", "conf.ini") == "h conf.ini"


def test_an_end_that_comes_late_overwrites_no_other_work(tmp_path: Path) -> None:
    """The owner has cleaned up after one that was cut short, and gone on:
    files of theirs are named.
    """
    source = repository(tmp_path / "r", FILES)
    patch = work(tmp_path, origin_of(source), "echo four >> README.md; echo n > new")
    head = git(source, "rev-parse", "HEAD")
    note = f"{head} {hashlib.sha256(patch.data).hexdigest()}\n"
    (source / ".git/batchd-apply").write_text(note)
    (source / "README.md").write_text("mine\n")
    (source / "new").write_text("mine too\n")
    give_away(source)
    with pytest.raises(WorkspaceError, match=r"changed since it was cut short: README\.md new"):
        put(source, patch.data)
    assert (source / "README.md").read_text() == "mine\n"
    assert (source / "new").read_text() == "mine too\n"


def test_patches_go_into_a_tree_together(tmp_path: Path) -> None:
    """The first is no change of the owner's that stands in the way of the second;
    where one does not fit, none goes in.
    """
    source = repository(tmp_path / "r", FILES)
    one = work(tmp_path, origin_of(source), "echo four >> README.md")
    two = work(tmp_path / "2", origin_of(source), "echo n > new")
    three = work(tmp_path / "3", origin_of(source), "echo other >> README.md")

    with pytest.raises(WorkspaceError, match="does not fit"):
        put(source, one.data, two.data, three.data)
    assert git(source, "status", "--porcelain") == ""
    give_away(source)
    put(source, one.data, two.data)
    assert git(source, "diff", "--cached", "--name-only").split() == ["README.md", "new"]


def test_two_patches_that_make_one_file_leave_the_tree_alone(tmp_path: Path) -> None:
    """Git looks for such a file in its working tree, and puts it there: not into the owner's.

    Of the same bytes they fit, of others none goes in; on a branch neither is seen in the tree.
    """
    source = repository(tmp_path / "r", FILES)
    base = git(source, "rev-parse", "HEAD")
    one = work(tmp_path, origin_of(source), "echo new > NEW.md; echo four >> README.md")
    same = work(tmp_path / "2", origin_of(source), "echo new > NEW.md")
    other = work(tmp_path / "3", origin_of(source), "echo other > NEW.md")
    branch = applying.Branch("wip", base, "A", "a@b", "m")
    put(source, one.data, branch=branch)
    with pytest.raises(WorkspaceError, match="does not fit"):
        put(source, other.data, branch=branch)
    with pytest.raises(WorkspaceError, match="it is there already"):
        put(source, same.data, branch=branch)
    with pytest.raises(WorkspaceError, match=r"does not fit .*NEW\.md"):
        put(source, one.data, other.data)
    assert git(source, "status", "--porcelain", "--ignored") == ""
    put(source, one.data, same.data, same.data)
    assert git(source, "status", "--porcelain").split() == ["A", "NEW.md", "M", "README.md"]


def test_what_a_patch_cannot_hold_is_said(tmp_path: Path) -> None:
    """What the task closed to itself is read; repositories within,
    and names that git takes for its own, are named.
    """
    source = repository(
        tmp_path / "r",
        {
            **FILES,
            "win.ps1": "a\n".encode("utf-16"),
            ".gitattributes": "*.ps1 working-tree-encoding=UTF-16\n",
        },
    )
    patch = work(
        tmp_path,
        origin_of(source),
        "chmod 0 README.md; mkdir d; echo x > d/x; chmod 0 d; rm gone.txt",
    )
    assert lines(patch) == {"d/x": (1, 0), "gone.txt": (0, 1)}
    patch = work(
        tmp_path / "2",
        origin_of(source),
        "echo b >> win.ps1; ln -sf nowhere .gitattributes; echo 4 >> README.md",
    )
    assert (lines(patch)["win.ps1"], lines(patch)["README.md"]) == ((1, 0), (1, 0))
    patch = work(
        tmp_path / "3",
        origin_of(source),
        "git init -q 'a b'; echo x > 'a b/x'; echo 4 >> README.md",
    )
    assert lines(patch) == {"README.md": (1, 0)}
    assert patch.lacks.startswith("it leaves out repositories within it: a")
    patch = work(
        tmp_path / "4", origin_of(source), "mkdir .GIT; echo x > .GIT/x; echo 4 >> README.md"
    )
    assert "not all could be read" in patch.lacks
    assert patch.problem == ""
    patch = work(tmp_path / "5", origin_of(source), "rm .gitattributes; mkfifo .gitattributes")
    assert "is a pipe" in patch.problem


def test_a_secret_in_what_is_no_text_withholds_the_patch(tmp_path: Path) -> None:
    """It stands there compressed; what the model says of its files is not heard."""
    source = repository(tmp_path / "r", FILES)
    masker = Masker(known=["hunter2-hunter2"])
    for number, change in enumerate(
        (
            "printf 'a\\0hunter2-hunter2' > bin",
            "printf 'a\\0hunter2-hunter2' > \"$(printf 'a\\ttab')\"",
            "echo '* -diff' > .gitattributes; echo hunter2-hunter2 >> README.md",
            "echo 'before and hunter2-hunter2 and behind, for longer than a line' | base64 -w 20 > encoded",
            "head -c 9M /dev/zero > bin; printf hunter2-hunter2 >> bin",
            "head -c 12M /dev/zero > bin; printf hunter2-hunter2 >> bin",
        )
    ):
        patch = work(tmp_path / str(number), origin_of(source), change, masker=masker)
        assert patch.withheld
    patch = work(
        tmp_path / "9", origin_of(source), "echo '* -diff' > .gitattributes; echo 4 >> README.md"
    )
    assert b"\n+4\n" in patch.data


def test_repositories_of_every_shape_are_cloned(tmp_path: Path) -> None:
    """A HEAD that leads nowhere, a name with quotes; a tag of something else is no commit."""
    source = repository(tmp_path / "r \"x'", FILES)
    git(source, "tag", "blob", git(source, "rev-parse", "HEAD:README.md"))
    (source / ".git/HEAD").write_text("ref: refs/heads/gone\n")
    give_away(source)
    assert lines(work(tmp_path, origin_of(source, "main"), "echo 4 >> README.md")) == {
        "README.md": (1, 0)
    }
    with pytest.raises(
        WorkspaceError, match="no branch, tag or commit for a commit: there are main"
    ):
        asyncio.run(fetched(tmp_path / "2", origin_of(source)))
    with pytest.raises(WorkspaceError, match="for the ref blob"):
        asyncio.run(fetched(tmp_path / "3", origin_of(source, "blob")))


def test_a_copy_with_repositories_in_it_is_made(tmp_path: Path) -> None:
    """One without a commit is nothing that git can take; the rest is there, and counts."""
    source = tmp_path / "d"
    (source / "sub").mkdir(parents=True)
    git(source / "sub", "init", "-q")
    (source / "a.txt").write_text("a\n")
    give_away(source)
    patch = work(tmp_path, origin_of(source, kind="copy"), "echo b >> a.txt; test -d sub/.git")
    assert lines(patch) == {"a.txt": (1, 0)}
    assert patch.lacks == "it leaves out repositories within it: sub/"


def test_a_tree_is_taken_as_its_owner_has_it(tmp_path: Path) -> None:
    """With line ends of another system a clean tree is clean, and stays so;
    in the middle of a rebase nothing goes in.
    """
    source = repository(tmp_path / "r", FILES)
    git(source, "config", "core.autocrlf", "true")
    (source / "README.md").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    git(source, "add", "README.md")
    give_away(source)
    patch = work(tmp_path, origin_of(source), "echo four >> README.md")
    (source / ".git/rebase-merge").mkdir()
    give_away(source)
    with pytest.raises(WorkspaceError, match="something else is under way there"):
        put(source, patch.data)
    (source / ".git/rebase-merge").rmdir()
    put(source, patch.data)
    assert (source / "README.md").read_bytes() == b"one\r\ntwo\r\nthree\r\nfour\r\n"
    assert git(source, "diff", "--name-only") == ""


def test_files_that_a_task_left_alone_are_in_no_patch(tmp_path: Path) -> None:
    """Git would take other line ends than the checkout has put there: by attributes that came
    after the files, or that the task changes. What it did change is there, whole.
    """
    files = dict.fromkeys(("run.bat", "edited.bat", "mode.bat", "lf.bat"), "one\r\ntwo\r\n")
    source = repository(tmp_path / "r", {**FILES, **files, "mixed.bat": "a\r\nb\n", "x.txt": "x\n"})
    attributes = "*.bat text eol=crlf\n*.txt text eol=crlf\n"
    (source / ".gitattributes").write_text(attributes)
    git(source, "add", ".gitattributes")
    git(source, "commit", "-q", "-m", "attributes")
    give_away(source)
    assert git(source, "ls-files", "--eol", "run.bat").startswith("i/crlf")
    assert work(tmp_path, origin_of(source), "true") == Patch()
    change = "echo three >> edited.bat; chmod +x mode.bat; sed -i 's/\\r//' lf.bat"
    patch = work(tmp_path / "2", origin_of(source), change)
    assert lines(patch) == {"edited.bat": (3, 2), "lf.bat": (2, 2), "mode.bat": (2, 2)}
    patch = work(tmp_path / "3", origin_of(source), "echo '*.c text' > .gitattributes")
    assert lines(patch) == {".gitattributes": (1, 2)}
    copied = tmp_path / "d"
    copied.mkdir()
    (copied / "run.bat").write_bytes(b"one\r\n")
    give_away(copied)
    change = "echo '* text' > .gitattributes"
    patch = work(tmp_path / "4", origin_of(copied, kind="copy"), change)
    assert lines(patch) == {".gitattributes": (1, 0)}


def with_submodules(tmp_path: Path, *names: str) -> Path:
    """Make a repository with submodules."""
    source = repository(tmp_path / "r", FILES)
    for name in names:
        (source / name).mkdir(parents=True)
        link = f"160000,{git(source, 'rev-parse', 'HEAD')},{name}"
        git(source, "update-index", "--add", "--cacheinfo", link)
    git(source, "commit", "-q", "-m", "sub")
    give_away(source)
    return source


def test_a_submodule_is_not_for_a_patch_to_change(tmp_path: Path) -> None:
    """What lies in it is the owner's, and git would take it away."""
    source = with_submodules(tmp_path, "sub")
    (source / "sub/own").write_text("mine\n")
    give_away(source)
    mode, commit_ = "deleted file mode 160000", git(source, "rev-parse", "HEAD:sub")
    patch = f"diff --git a/sub b/sub\n{mode}\nindex {commit_}..{'0' * 40}\n--- a/sub\n+++ /dev/null\n@@ -1 +0,0 @@\n-Subproject commit {commit_}\n"
    with pytest.raises(WorkspaceError, match="it changes submodules, or repositories within: sub"):
        put(source, patch.encode())
    assert (source / "sub/own").read_text() == "mine\n"


def test_what_becomes_of_a_submodule_is_said_and_left_out(tmp_path: Path) -> None:
    """Its folder is empty in a clone: filled, removed, something else or a repository, it changes
    nothing that the patch could hold, and the rest can be applied.
    """
    names = ("v/filled", "v/gone", "v/a file", "v/link", "v/repository", "v/same")
    source = with_submodules(tmp_path, *names)
    change = (
        "echo 4 >> README.md; echo stub > v/filled/lib.h; rmdir v/gone 'v/a file' v/link; mkdir e; ln -s ../e v/link;"
        " echo x > 'v/a file'; git init -q v/repository; echo x > v/repository/x"
    )
    patch = work(tmp_path, origin_of(source), change)
    assert lines(patch) == {"README.md": (1, 0)}
    _, _, left = patch.lacks.partition("what became of submodules: ")
    assert left.startswith("v/a file v/filled v/gone v/link v/repository")
    put(source, patch.data)
    assert git(source, "diff", "--cached", "--name-only") == "README.md"
    assert work(tmp_path / "2", origin_of(source), "true") == Patch()


def test_what_git_runs_there_by_itself_is_not_changed_unasked(tmp_path: Path) -> None:
    """However a setting names it, in whichever file, through links; with a word, it goes in."""
    files = {"tools/hk/pre-commit": "#!/bin/sh\n", "häks/pre-push": "", "watch/fs mon": "x"}
    source = repository(tmp_path / "r", {**FILES, **files})
    (source / "link").symlink_to("tools")
    (source / "husky").symlink_to("link/hk")
    commit(source, {"gitcfg": ""})
    (source / ".git/more").write_text("[core]\nhooksPath = tools/hk/\n")
    give_away(source)
    ran = "echo evil >> tools/hk/pre-commit; echo 4 >> README.md"
    relink = "ln -sfn src link; echo 4 >> README.md"
    changes = {
        "hook": work(tmp_path / "1", origin_of(source), ran),
        "link": work(tmp_path / "2", origin_of(source), relink),
        "quoted": work(tmp_path / "3", origin_of(source), "echo evil >> häks/pre-push"),
        "program": work(tmp_path / "4", origin_of(source), "echo evil >> 'watch/fs mon'"),
        "settings": work(tmp_path / "5", origin_of(source), "echo '[core]' >> gitcfg; touch new"),
        "folder": work(tmp_path / "6", origin_of(source), "rm -r tools; ln -s src tools"),
    }
    hooks = {
        "core.hooksPath": ("tools/hk", "tools//hk/", "././tools/hk", "src/../tools/hk", f"{source}/tools/hk", "husky", "link/hk"),
        "include.path": ("more",),
    }  # fmt: skip
    cases = [("hook", key, value) for key, values in hooks.items() for value in values]
    cases += [("link", "core.hooksPath", "husky"), ("quoted", "core.hooksPath", "häks")]
    cases += [("folder", "core.hooksPath", "tools/hk"), ("folder", "include.path", "../tools/new")]
    cases += [("program", "core.fsmonitor", f"{source}/watch/fs mon")]
    cases += [("hook", "core.fsmonitor", "sh tools/hk/pre-commit --x")]
    cases += [("settings", "include.path", "../gitcfg"), ("settings", "includeIf.onbranch:x.path", "../new")]  # fmt: skip
    for what, key, value in cases:
        git(source, "config", key, value)
        give_away(source)
        with pytest.raises(WorkspaceError, match="it changes what git runs there by itself: "):
            put(source, changes[what].data, ruled=applying.obeyed(source))
        git(source, "config", "--unset", key)
    (source / ".git/hooks").mkdir(exist_ok=True)
    (source / ".git/hooks/pre-commit").symlink_to("../../tools/hk/pre-commit")
    give_away(source)
    with pytest.raises(WorkspaceError, match="by itself: tools/hk/pre-commit"):
        put(source, changes["hook"].data, ruled=applying.obeyed(source))
    assert git(source, "status", "--porcelain") == ""
    # What no setting names, and what only an alias does, is any file.
    git(source, "config", "alias.x", "!cat gitcfg README.md")
    give_away(source)
    put(source, changes["settings"].data, ruled=applying.obeyed(source))
    git(source, "reset", "-q", "--hard")
    give_away(source)
    put(source, changes["hook"].data)
    assert "tools/hk/pre-commit" in git(source, "diff", "--cached", "--name-only")


@pytest.mark.skipif(os.geteuid() == 0, reason="as root the owner's own home counts")
def test_hooks_of_the_users_own_configuration_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that includes a file for some repositories."""
    source = repository(tmp_path / "r", FILES)
    patch = work(tmp_path, origin_of(source), "mkdir hk; echo evil > hk/pre-commit")
    (tmp_path / "more").write_text("[core]\nhooksPath = hk\n")
    (tmp_path / ".gitconfig").write_text(f'[includeIf "gitdir:{source}/"]\npath = more\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WorkspaceError, match="by itself: hk/pre-commit"):
        put(source, patch.data, ruled=applying.obeyed(source))


# The whole way, by a daemon


def served(spool: Any, **files: str | bytes) -> Path:
    """Make a repository where the spool's tasks may name it."""
    return repository(spool.folder / "work/r", {**FILES, **files})


def test_tasks_of_one_repository_work_at_once_and_leave_patches(spool: Any) -> None:
    """Each has a clone of its own; results say what has changed, `diff` shows it,
    `apply` puts it in, `prune` takes clones and mirror away.
    """
    source = served(spool)
    tasks = [{"first_prompt": "Write notes", "model": "standin/notes-2"}] * 3
    path = spool.write("b.json", tasks, repo="work/r")
    with spool.serving():
        assert spool.batchd("run", path).returncode == 0
        result = spool.result("b", "001")
        patch = (spool.folder / "outbox/b/001.patch").read_bytes()
        assert result["changes"] == [{"path": "notes.txt", "added": 2, "removed": 0}]
        assert result["patch"] == {
            "file": "001.patch",
            "files": 1,
            "bytes": len(patch),
            "sha256": hashlib.sha256(patch).hexdigest(),
            "left_out": [],
            "withheld": False,
            "lacks": None,
            "problem": None,
        }
        assert result["workspace"] == {
            "kind": "clone",
            "source": str(source),
            "ref": "",
            "base": git(source, "rev-parse", "HEAD"),
            "branch": "batchd/b/001",
        }
        assert result["files"] == {"created": ["notes.txt"], "modified": [], "deleted": []}
        assert result["runs_code"] == []
        # The clone can be looked at where it lies.
        assert git(spool.folder / "outbox/b/001", "status", "--porcelain") == "?? notes.txt"
        assert spool.batchd("diff", "b/001").stdout.encode() == patch
        assert spool.batchd("diff", "b").stdout.count("diff --git") == 3
        assert "+2 -0  notes.txt" in spool.batchd("diff", "b", "--stat").stdout
        assert "1 file, +2 -0: `batchd diff b/001`" in spool.batchd("status", "b/001").stdout
        done = spool.batchd("apply", "b/001")
        assert (done.returncode, done.stderr) == (0, "")
        assert (source / "notes.txt").read_text() == "1\n2\n"
        refused = spool.batchd("apply", "b/002")
        assert refused.returncode == 3
        fix = "commit or stash them, or apply to a branch: --branch NAME"
        assert f"changes of its own: notes.txt ({fix})" in " ".join(refused.stderr.split())
        assert spool.batchd("apply", "b/002", "--branch", "wip").returncode == 0
        assert git(source, "log", "-1", "--format=%s", "wip") == "Write notes"
        mirrors = spool.folder / ".batchd-mirrors"
        assert len(list(mirrors.iterdir())) == 1
        answer = spool.batchd("prune", "--outbox", "--yes")
        assert "1 mirror removed" in answer.stdout
        assert not list(mirrors.iterdir())


def test_where_batchd_applies_nothing_it_says_what_to_type(spool: Any) -> None:
    """Into a copied folder within a repository, and into one that root owns:
    the command works as it is printed.
    """
    source = served(spool)
    notes = source / "docs/own"
    notes.mkdir(parents=True)
    (notes / "a.txt").write_text("a\n")
    give_away(source)
    tasks = [{"first_prompt": "Write notes", "model": "standin/notes-1"}]
    file = spool.write("b.json", tasks, dir=str(notes), workspace="copy")
    assert spool.batchd("run", file).returncode == 0
    for arguments in ((), ("--into", str(notes))):
        refused = spool.batchd("apply", "b/001", *arguments)
        assert refused.returncode == 3
        assert f"{notes} is no repository" in refused.stderr
    patch = spool.folder / "outbox/b/001.patch"
    command = shlex.join(["git", "-C", str(source), "apply", "--directory=docs/own", str(patch)])
    assert refused.stderr.rstrip().endswith(command)
    git(source, *shlex.split(command)[3:])
    assert (notes / "notes.txt").read_text() == "1\n"
    if os.geteuid() == 0:
        os.chown(source, 0, 0)
        refused = spool.batchd("apply", "b/001", "--into", source)
        command = shlex.join(["git", "-C", str(source), "apply", str(patch)])
        assert f"by hand: {command}" in refused.stderr
        assert "chown" not in refused.stderr


def test_what_cannot_be_had_ends_its_tasks_and_no_others(spool: Any) -> None:
    """A ref that is not there: ``error`` / ``workspace``, with the reason;
    the tasks beside it are done.
    """
    served(spool)
    tasks = [
        {"first_prompt": "a", "repo": "work/r", "ref": "nope"},
        {"first_prompt": "b", "repo": "work/r"},
        {"first_prompt": "c"},
        {"first_prompt": "d", "dir": "work/r", "workspace": "copy", "model": "standin/notes-1"},
    ]
    assert spool.batchd("run", spool.write("b.json", tasks)).returncode == 1
    ends = [spool.result("b", f"00{n}") for n in (1, 2, 3, 4)]
    assert [(end["status"], end["reason"]) for end in ends] == [
        ("error", "workspace"),
        *[("completed", None)] * 3,
    ]
    assert (
        "no branch, tag or commit for the ref nope: there are main" in ends[0]["error"]["message"]
    )
    assert [end["patch"] is None for end in ends] == [True, True, True, False]
    assert (ends[1]["changes"], ends[2]["changes"]) == ([], None)
    assert ends[3]["workspace"]["kind"] == "copy"
    # Copies go with their batch, mirrors stay for its clones.
    spool.eventually(lambda: len(list((spool.folder / ".batchd-mirrors").iterdir())) == 1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([{"repo": "work/r", "dir": "work/r"}], "tasks[0].repo: a task has a dir or a repo, not both"),
        ([{"repo": "work/none"}], "does not exist"),
        ([{"repo": "work"}], "is not a git repository"),
        ([{"repo": "/etc"}], "outside of [workspace] root and allow"),
        ([{"repo": "https://example.org/a.git"}], "is not in [workspace] repos, which is empty"),
        ([{"repo": "git@example.org:a.git"}], "it is written https://HOST/PATH or ssh://USER@HOST/PATH"),
        ([{"ref": "main"}], "tasks[0].ref: it needs a repo"),
        ([{"repo": "work/r", "ref": "a b"}], "holds no blanks"),
        ([{"workspace": "copy"}], "tasks[0].workspace: there is no dir to copy"),
        ([{"repo": "work/r", "workspace": "copy"}], "a repo is always cloned"),
        ([{"repo": ".batchd-mirrors/x"}], "the folder of mirrors"),
        ([{"repo": "work/linked"}], "has a .git that leads elsewhere"),
    ],
)  # fmt: skip
def test_what_no_task_may_ask_for_is_refused_with_the_fix(
    spool: Any, tasks: list[dict[str, str]], words: str
) -> None:
    """Before anything begins: what, where, and how it is written."""
    served(spool)
    (spool.folder / "work/linked").mkdir()
    (spool.folder / "work/linked/.git").write_text("gitdir: ../r/.git\n")
    path = spool.write("b.json", [{"first_prompt": "x", **task} for task in tasks])
    refused = spool.batchd("submit", path)
    assert refused.returncode == 2
    assert words in refused.stderr


def test_a_daemon_that_is_killed_goes_on_with_its_clones(spool: Any) -> None:
    """While they are fetched, made and worked in, and as their patches are there:
    the next one ends all of them, each with its own.
    """
    source = served(spool, **{f"f{n}": "x\n" * n for n in range(300)})
    tasks = [{"first_prompt": str(n), "model": "standin/notes-3"} for n in range(4)]
    path = spool.write("b.json", tasks, repo="work/r")
    after = [".batchd-mirrors", "outbox/b/001", "outbox/b/002/notes.txt", "outbox/b/001.patch"]
    with spool.serving() as process:
        assert spool.batchd("submit", path).returncode == 0
        spool.eventually((spool.folder / after[0]).exists)
        process.send_signal(signal.SIGKILL)
    for name in after[1:]:
        with spool.serving() as process:
            spool.eventually((spool.folder / name).exists)
            process.send_signal(signal.SIGKILL)
    with spool.serving():
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
    for n in (1, 2, 3, 4):
        result = spool.result("b", f"00{n}")
        patch = (spool.folder / f"outbox/b/00{n}.patch").read_bytes()
        assert result["status"] == "completed"
        assert result["patch"]["sha256"] == hashlib.sha256(patch).hexdigest()
        assert [change["path"] for change in result["changes"]] == ["notes.txt"]
        assert git(source, "apply", "--check", "-", stdin=patch) == ""
    assert git(source, "status", "--porcelain") == ""


_TOKEN = "s3cret-token-of-the-operator"


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves files to who shows a user and a password."""

    def do_GET(self) -> None:
        """Ask for it, or send the file; what has moved lies elsewhere."""
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = base64.b64encode(f"batch:{_TOKEN}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {wanted}":
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.end_headers()

    def log_message(self, *_: object) -> None:  # type: ignore[override] # (it is not read)
        """Say nothing."""


@contextlib.contextmanager
def https(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder over TLS; give the address, and the certificate to believe."""
    key, certificate = folder.parent / "key", folder.parent / "certificate"
    options = (
        "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    )
    name, files = ("-addext", "subjectAltName=DNS:localhost"), ("-keyout", key, "-out", certificate)
    subprocess.run(
        ["openssl", "req", *options.split(), *name, *files], check=True, capture_output=True
    )
    handler = functools.partial(Guarded, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_repository_behind_a_password_is_cloned_and_no_task_sees_it(spool: Any) -> None:
    """By a URL that the configuration names; the password stands in its file, and nowhere else.

    Without it, the task says why.
    """
    source = served(spool)
    site = spool.folder / "site/files"
    site.mkdir(parents=True)
    shutil.copytree(source / ".git", site / "r.git")
    git(site / "r.git", "update-server-info")
    config = spool.folder / "config.toml"
    with https(site) as (address, certificate):
        keys = spool.folder / "git-credentials"
        keys.write_text(f"{address.replace('//', f'//batch:{_TOKEN}@')}\n")
        keys.chmod(0o600)
        plain = config.read_text()
        config.write_text(f'{plain}[workspace]\nrepos = ["{address}/*"]\n')
        spy = "notes-1"
        tasks = [{"first_prompt": "x", "repo": f"{address}/r.git", "model": f"standin/{spy}"}]
        path = spool.write("b.json", tasks)
        with spool.serving(GIT_SSL_CAINFO=str(certificate)):
            assert spool.batchd("run", path).returncode == 1
        assert spool.result("b", "001")["reason"] == "workspace"
        assert "could not read Username" in spool.result("b", "001")["error"]["message"]
        config.write_text(f'{config.read_text()}credentials = "git-credentials"\n')
        with spool.serving(GIT_SSL_CAINFO=str(certificate)):
            assert spool.batchd("run", path).returncode == 0
        assert keys.read_text().count(_TOKEN) == 1
        keys.write_text(keys.read_text().replace(_TOKEN, "wrong"))
        (spool.folder / ".batchd-mirrors").rename(spool.folder / "away")
        with spool.serving(GIT_SSL_CAINFO=str(certificate)):
            assert spool.batchd("run", path).returncode == 1
        # What a server refuses once is not forgotten: it may have been the server.
        assert "wrong" in keys.read_text()
        keys.write_text(keys.read_text().replace("wrong", _TOKEN))
        task = {"first_prompt": "x", "repo": f"{address}/moved/r.git"}
        with spool.serving(GIT_SSL_CAINFO=str(certificate)):
            assert spool.batchd("run", spool.write("m.json", [task])).returncode == 1
        assert "302" in spool.result("m", "001")["error"]["message"]
        assert spool.result("b-2", "001")["changes"] == [
            {"path": "notes.txt", "added": 1, "removed": 0}
        ]
        assert (
            git(spool.folder / "outbox/b-2/001", "remote", "get-url", "origin")
            == f"{address}/r.git"
        )
    holders = [path for path in spool.folder.rglob("*") if path.is_file() and path != keys]
    assert [path for path in holders if _TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize("whom", ["the daemon", "the child"])
def test_a_fetch_ends_with_who_asked_for_it(spool: Any, whom: str) -> None:
    """A server that does not answer: `status` says so;
    git and ssh are gone with the daemon, or with the child that it has for that.
    """
    tools = spool.folder / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(
        f'#!/bin/sh\ncd "${{0%/*}}"; echo $$ > pid.new; mv pid.new pid; sleep 1000.{os.getpid()}\n'
    )
    (tools / "ssh").chmod(0o755)
    config = spool.folder / "config.toml"
    config.write_text(f'{config.read_text()}[workspace]\nrepos = ["ssh://git@host.example/*"]\n')
    mark = f"BATCHD_TEST_FETCH={spool.folder}"
    path = spool.write("b.json", [{"first_prompt": "x", "repo": "ssh://git@host.example/r.git"}])
    with spool.serving(
        PATH=f"{tools}:{os.environ['PATH']}", **dict([mark.split("=", 1)])
    ) as process:
        assert spool.batchd("submit", path).returncode == 0
        spool.eventually((tools / "pid").exists)
        for target in ([], ["b"], ["b/001"]):
            spool.eventually(
                lambda target=target: (
                    "Tasks of b wait for ssh://git@host.example/r.git, which is fetched"
                    in " ".join(spool.batchd("status", *target).stdout.split())
                )
            )
        sleeping = [n for n in numbers() if running(n, f"sleep\0001000.{os.getpid()}")]
        assert sleeping
        child = next(
            n
            for n in numbers()
            if running(n, "batchd.workspace.fetching") and running(n, str(process.pid))
        )
        os.kill(process.pid if whom == "the daemon" else child, signal.SIGKILL)
        spool.eventually(
            lambda: not any(running(n, f"sleep\0001000.{os.getpid()}") for n in sleeping)
        )
        if whom == "the child":
            spool.eventually((spool.folder / "outbox/b/summary.json").exists)
            assert (
                "the program that works on it has died"
                in spool.result("b", "001")["error"]["message"]
            )


def numbers() -> list[int]:
    """Return the processes that there are."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def running(process: int, words: str) -> bool:
    """Return whether a process runs whose command line holds these words."""
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return words in line


def test_a_patch_that_cannot_be_written_costs_no_call_again(spool: Any) -> None:
    """Something else lies in its place: the result says so,
    and the model was asked no more than it was.
    """
    served(spool)
    (spool.folder / "outbox/b/001.patch/in-the-way").mkdir(parents=True)
    (spool.folder / "outbox/b").rename(spool.folder / "kept")
    tasks = [{"first_prompt": "x", "repo": "work/r", "model": "standin/latency-1+notes-2"}]
    with spool.serving():
        spool.batchd("submit", spool.write("b.json", tasks))
        spool.eventually((spool.folder / "outbox/b/001/notes.txt").exists)
        (spool.folder / "kept/001.patch").rename(spool.folder / "outbox/b/001.patch")
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
    result = spool.result("b", "001")
    assert (result["status"], result["usage"]["calls"]) == ("completed", 3)
    assert (result["attempts"], result["usage"]["unsettled_calls"]) == (1, 0)
    assert "cannot be written" in result["patch"]["problem"]
    assert result["patch"]["file"] is None


@pytest.mark.long
def test_a_task_that_has_begun_needs_its_repository_no_more(spool: Any) -> None:
    """It has moved, and its owner is another, while the daemon was away:
    the task goes on in its clone.
    """
    source = served(spool)
    tasks = [{"first_prompt": "x", "repo": "work/r", "model": "standin/latency-1+notes-3"}]
    with spool.serving() as process:
        spool.batchd("submit", spool.write("b.json", tasks))
        spool.eventually((spool.folder / "outbox/b/001/notes.txt").exists)
        process.send_signal(signal.SIGKILL)
    source.rename(spool.folder / "away")
    with spool.serving():
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
    assert spool.result("b", "001")["status"] == "completed"
    assert (spool.folder / "outbox/b/001.patch").stat().st_size > 0


def test_a_clone_that_no_model_has_worked_in_is_made_again_after_a_power_cut(spool: Any) -> None:
    """Its files may be empty by then, and would stand in its patch."""
    served(spool)
    first = {"first_prompt": "x", "repo": "work/r", "model": "standin/latency-3+notes-1"}
    journal = f"file:{spool.folder}/.batchd/batchd.db"

    def calls() -> int:
        with contextlib.closing(sqlite3.connect(journal, uri=True)) as db:
            return sum(
                b'"CallStarted"' in bytes(body) for (body,) in db.execute("SELECT body FROM events")
            )

    with spool.serving() as process:
        spool.batchd("submit", spool.write("b.json", [first]))
        spool.eventually(lambda: calls() == 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    clone = spool.folder / "outbox/b/001"
    (clone / "README.md").write_text("")
    (clone / ".git/HEAD").write_text("")
    with contextlib.closing(sqlite3.connect(journal, uri=True)) as db, db:
        ((body,),) = db.execute("SELECT body FROM events WHERE seq = 0").fetchall()
        started = stored_values.unpack(body).replace(b'"boot":"', b'"boot":"0')
        db.execute("UPDATE events SET body = ? WHERE seq = 0", (started,))
    with spool.serving():
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
    result = spool.result("b", "001")
    assert (result["status"], result["attempts"], result["at_risk"]) == ("completed", 2, None)
    assert [change["path"] for change in result["changes"]] == ["notes.txt"]
    assert result["files"] == {"created": ["notes.txt"], "modified": [], "deleted": []}
    assert result["runs_code"] == []
    assert git(clone, "status", "--porcelain") == "?? notes.txt"


@pytest.mark.long
def test_without_a_look_nothing_is_said_of_changes(spool: Any) -> None:
    """A task that was paused and then cancelled may have changed anything: its files are named."""
    served(spool)
    tasks = [{"first_prompt": "x", "repo": "work/r", "model": "standin/notes-1+latency-2+steps-9"}]
    with spool.serving():
        spool.batchd("submit", spool.write("b.json", tasks))
        spool.eventually((spool.folder / "outbox/b/001/notes.txt").exists)
        assert spool.batchd("pause", "b").returncode == 0
        spool.eventually(lambda: "waiting since" in spool.batchd("status", "b/001").stdout)
        assert spool.batchd("cancel", "b").returncode == 0
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
        assert spool.result("b", "001")["changes"] is None
        assert "before batchd looked" in spool.batchd("status", "b/001").stdout
        assert "before batchd looked" in spool.batchd("diff", "b").stderr
        assert "before batchd looked" in spool.batchd("apply", "b/001").stderr


@pytest.mark.long
def test_prune_removes_mirrors_and_nothing_else(spool: Any) -> None:
    """What else lies in the folder stays,
    and so does a mirror of which it cannot be read who uses it.
    """
    served(spool)
    with spool.serving():
        assert (
            spool.batchd(
                "run", spool.write("b.json", [{"first_prompt": "x"}], repo="work/r")
            ).returncode
            == 0
        )
        mirrors = spool.folder / ".batchd-mirrors"
        (mirrors / "precious").mkdir()
        (mirrors / "precious/file").write_text("mine")
        (mirror,) = (path for path in mirrors.iterdir() if path.name != "precious")
        (pin,) = (mirror / "batches").iterdir()
        kept = pin.read_bytes()
        pin.write_bytes(b"")
        assert spool.batchd("prune", "--outbox", "--yes").returncode == 0
        assert mirror.is_dir()
        pin.write_bytes(kept)
        assert "1 mirror removed" in spool.batchd("prune", "--yes").stdout
        assert [path.name for path in mirrors.iterdir()] == ["precious"]


@pytest.mark.long
def test_a_mirror_that_another_spool_prunes_meanwhile_is_made_again_and_noted(
    tmp_path: Path,
) -> None:
    """Spools may share the mirrors' folder: who fetches waits for who prunes, begins again, and
    notes the use before it lets go of the lock. What is gone by then is said to be.
    """
    source = repository(tmp_path / "r", FILES)
    mirror = Mirror(tmp_path / "mirrors/it")
    mirror.prepare(str(source))
    head = git(source, "rev-parse", "HEAD")
    pin = Pin(batch="b", folder="/outbox/b", copy=False, commits={"old": "1" * 40})
    job = FetchJob(
        origin=origin_of(source),
        kept=str(mirror.kept),
        fetch=True,
        pin=pin,
        policy=SandboxPolicy(),
        timeout_s=PATIENCE_S,
        max_bytes=1 << 30,
    )
    command = processes.module("batchd.workspace.fetching", str(os.getpid()))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert answer(child.stdout) == b""  # it is ready
        with mirror.locked():
            child.stdin.write(message(job))
            child.stdin.flush()
            waits = f"WRITE {child.pid} "
            patience.until(lambda: waits in Path("/proc/locks").read_text())
            mirror.remove()
        outcome = msgspec.json.decode(answer(child.stdout), type=FetchOutcome)
        assert (outcome.commit, outcome.error) == (head, "")
        source.rename(tmp_path / "elsewhere")
        for kind in ("clone", "copy"):
            asked = msgspec.structs.replace(job, origin=origin_of(source, kind=kind))
            child.stdin.write(message(asked))
            child.stdin.flush()
            outcome = msgspec.json.decode(answer(child.stdout), type=FetchOutcome)
            assert outcome.error == "it is gone"
        child.stdin.close()
    noted = mirror.pinned("b", "/outbox/b")
    assert noted is not None
    assert noted.commits == {"old": "1" * 40, "": head}


def test_a_retry_has_a_fresh_clone(spool: Any) -> None:
    """Of the same repository and ref, also where the dropped file is gone."""
    source = served(spool)
    git(source, "branch", "dev")
    give_away(source)
    tasks = [{"first_prompt": "x", "repo": "work/r", "ref": "dev", "model": "standin/notes-1"}]
    with spool.serving():
        assert spool.batchd("run", spool.write("b.json", tasks)).returncode == 0
        (spool.folder / "outbox/b/request.json").unlink()
        assert spool.batchd("retry", "b", "--yes").returncode == 0
        spool.eventually((spool.folder / "outbox/b-2/summary.json").exists)
    assert spool.result("b-2", "001")["workspace"]["ref"] == "dev"
    assert json.loads((spool.folder / "outbox/b-2/request.json").read_text())["tasks"][0]["repo"]
