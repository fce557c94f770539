"""Repositories that attack: what they have git run,
borrow or hide, and what a task makes of its clone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from attacking import NOBODY_ID
from camp import Camp, does, says
from repositories import git, needs_git, repository

pytestmark = [needs_git, pytest.mark.in_turns]

FILES: Mapping[str, str | bytes] = {"README.md": "one\n", "a.py": "print(1)\n"}
_CHANGE = "echo two >> README.md"


def source(camp: Camp, **files: str | bytes) -> Path:
    """Make a repository where tasks may name it, of the user whose rights its commands get."""
    camp.workplace(camp.folder / "work")
    made = repository(camp.folder / "work/r", {**FILES, **files})
    owned(made)
    return made


def owned(folder: Path) -> None:
    """Give a tree to the user whose rights commands get."""
    for path in (folder, *folder.rglob("*")) if os.geteuid() == 0 else ():
        os.chown(path, NOBODY_ID, NOBODY_ID, follow_symlinks=False)


def program(folder: Path) -> Path:
    """Put a program into a repository's .git that leaves a mark wherever it runs."""
    made = folder / ".git/evil"
    made.write_text("#!/bin/sh\ntouch /task/ran /base/ran 2> /dev/null\ncat\n")
    made.chmod(0o755)
    return made


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("read-only base")
def test_no_task_writes_to_what_others_begin_at(camp: Camp) -> None:
    """The mirror of a repository is read-only, to its last file;
    the next task begins at what was fetched.
    """
    source(camp)
    spoil = "echo evil >> /base/git/config; touch /base/x; rm -rf /base/git/objects /base/git/refs"
    task = {"repo": "work/r", "check": "git fsck && test ! -e /base/x"}
    with camp.answering({"x": [does(spoil), says("Done.")], "y": [does(_CHANGE), says("Done.")]}):
        results = camp.play([{"first_prompt": "x", **task}, {"first_prompt": "y", **task}])
    assert [result["status"] for result in results.values()] == ["completed"] * 2
    assert results["002"]["changes"] == [{"path": "README.md", "added": 1, "removed": 0}]


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("git of our own")
def test_no_task_hides_what_it_has_changed(camp: Camp) -> None:
    """It takes its git away: what it has changed stands in the patch all the same."""
    source(camp)
    hide = f"{_CHANGE}; echo evil > new; rm -rf .git; mkdir .git"
    with camp.answering({"x": [does(hide), says("Done.")]}):
        result = camp.play([{"first_prompt": "x", "repo": "work/r"}])["001"]
    assert [change["path"] for change in result["changes"] or ()] == ["README.md", "new"]


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("fetched inside")
def test_no_dropper_reads_by_a_repository_what_they_may_not(camp: Camp) -> None:
    """Its objects are a link to those of one that lies elsewhere:
    batchd could follow it, and the sandbox has nothing there.
    """
    private = repository(camp.folder / "private", {"key": "the operator's own\n"})
    if camp.prefix:
        owned(private)
    made = source(camp)
    (made / ".git/objects").rename(made / ".git/own")
    (made / ".git/objects").symlink_to(private / ".git/objects")
    (made / ".git/refs/heads/main").write_text(git(private, "rev-parse", "HEAD") + "\n")
    owned(made)
    with camp.answering({"x": [does("cat key"), says("Done.")]}):
        result = camp.play([{"first_prompt": "x", "repo": "work/r"}])["001"]
    assert (result["status"], result["reason"]) == ("error", "workspace")
    assert "the operator's own" not in (camp.folder / "outbox/batch/results.jsonl").read_text()


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("no hooks")
def test_no_hook_runs_as_a_patch_goes_on_a_branch(camp: Camp) -> None:
    """Not where the branch is written either, which has a hook of its own."""
    made = source(camp)
    evil = program(made)
    (made / ".git/hooks").mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-index-change"):
        (made / ".git/hooks" / name).write_bytes(evil.read_bytes())
        (made / ".git/hooks" / name).chmod(0o755)
    owned(made)
    with camp.answering({"x": [does(_CHANGE), says("Done.")]}):
        assert camp.play([{"first_prompt": "x", "repo": "work/r"}])["001"]["patch"]
        done = camp.batchd("apply", "batch/001", "--branch", "wip")
    assert done.returncode == 0, done.stderr
    assert not (made / "ran").exists()


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("no filters")
def test_no_filter_runs_as_a_patch_goes_into_a_tree(camp: Camp) -> None:
    """Nor a monitor of files, nor a driver of merges:
    the repository's configuration has no say in files.
    """
    made = source(camp, **{".gitattributes": "* filter=evil merge=evil diff=evil\n"})
    evil = program(made)
    for key in ("filter.evil.smudge", "filter.evil.clean", "merge.evil.driver", "core.fsmonitor"):
        git(made, "config", key, str(evil.relative_to(made)))
    owned(made)
    with camp.answering({"x": [does(_CHANGE), says("Done.")]}):
        assert camp.play([{"first_prompt": "x", "repo": "work/r"}])["001"]["patch"]
        done = camp.batchd("apply", "batch/001")
    assert done.returncode == 0, done.stderr
    assert (made / "README.md").read_text() == "one\ntwo\n"
    assert not (made / "ran").exists()
