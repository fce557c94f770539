"""What counts as changed, among what runs code when somebody uses a directory; and how a look for it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchd.records.triggers import REST, Trigger, changed
from batchd.sandbox import triggers


def look(folder: Path) -> dict[str, Trigger]:
    """Return what there is in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return triggers.found(descriptor, str(folder), 60.0)
    finally:
        os.close(descriptor)


def test_what_was_not_looked_at_before_counts_by_its_time() -> None:
    """Where a first look came to no end, what only the second one finds is new only where it has changed since."""
    old, new = Trigger("shells", (1, 2, 3, 99 * 10**9)), Trigger("shells", (1, 2, 3, 100 * 10**9))
    rest = Trigger("", (), "folder")
    after = {"a/.envrc": old, "b/.envrc": new}
    assert changed({REST: rest}, {**after, REST: rest}, 100.0) == {"b/.envrc": "created"}
    assert [*changed({}, after, 100.0)] == ["a/.envrc", "b/.envrc"]


def test_a_look_follows_no_link_out_and_ends_whatever_there_is(tmp_path: Path) -> None:
    """Links in circles, to elsewhere and to nothing, FIFOs, names that are no text: nothing is opened, nothing left out."""
    task, secret = tmp_path / "task", tmp_path / "secret"
    for folder in (task / ".vscode", task / "sub", secret):
        folder.mkdir(parents=True)
    (secret / "settings.json").write_text("{}")
    (task / ".vscode/again").symlink_to(".")
    (task / ".vscode/settings.json").symlink_to(secret / "settings.json")
    (task / ".idea").symlink_to(secret)
    (task / ".claude").symlink_to("nowhere")
    (task / ".git").symlink_to(".git")
    os.mkfifo(task / ".envrc")
    (task / "sub" / os.fsdecode(b"\xff.code-workspace")).write_text("")
    found = look(task)
    direct = {path: t.kind for path, t in found.items() if "again/" not in path}
    assert direct == {
        **dict.fromkeys(
            (".vscode/again", ".vscode/settings.json", ".idea", ".claude", ".git"), "link"
        ),
        ".envrc": "folder",
        "sub/\\xff.code-workspace": "file",
    }
    assert len(found[".idea"].stamp) == 4  # the link's own: what it leads to is not looked at
    assert found == look(task)


def test_a_directory_within_a_folder_that_counts_counts_as_a_whole(tmp_path: Path) -> None:
    """A task that works in ``.claude/skills`` changes an agent's settings, whatever its files are called."""
    place = tmp_path / ".claude/skills"
    place.mkdir(parents=True)
    (place / "anything.md").write_text("x")
    assert {path: trigger.by for path, trigger in look(place).items()} == {"anything.md": "agents"}


@pytest.mark.parametrize("name", [".git", "elsewhere.git", "x/modules/y"])
def test_of_a_repositorys_inside_only_what_git_obeys_counts(tmp_path: Path, name: str) -> None:
    """Its settings and hooks; not what every commit changes, nor what every `git init` leaves."""
    inside = tmp_path / name
    for folder in ("hooks", "objects/aa", "refs", "logs", "info"):
        (inside / folder).mkdir(parents=True)
    for file in (
        *("HEAD", "index", "config", "COMMIT_EDITMSG", "logs/HEAD", "objects/aa/config"),
        *("hooks/pre-commit", "hooks/pre-push.sample"),
    ):
        (inside / file).write_text("x")
    assert {*look(tmp_path)} == {f"{name}/config", f"{name}/hooks/pre-commit"}
