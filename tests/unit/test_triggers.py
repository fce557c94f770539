"""What counts as changed, among what runs code when somebody uses a directory;
and how a look for it ends.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchd.records.policy import REST, VERSIONS, Trigger, changed
from batchd.sandbox import trigger_search
from batchd.sandbox.trigger_search import names, run_by_git


def look(folder: Path) -> dict[str, Trigger]:
    """Return what there is in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return trigger_search.found(descriptor, str(folder), 60.0)
    finally:
        os.close(descriptor)


def test_what_was_not_looked_at_before_counts_by_its_time() -> None:
    """Where a first look came to no end,
    what only the second one finds is new only where it has changed since.
    """
    old, new = Trigger("shells", (1, 2, 3, 99 * 10**9)), Trigger("shells", (1, 2, 3, 100 * 10**9))
    rest = Trigger("", (), "folder")
    after = {"a/.envrc": old, "b/.envrc": new}
    assert changed({REST: rest}, {**after, REST: rest}, 100.0) == {"b/.envrc": "created"}
    assert [*changed({}, after, 100.0)] == ["a/.envrc", "b/.envrc"]


def test_names_count_wherever_they_lie(tmp_path: Path) -> None:
    """Some only in a folder of a certain name."""
    expected = {
        **dict.fromkeys(("prek.toml", ".config/lefthook-local.jsonc", ".lefthook.toml"), "git"),
        **dict.fromkeys(("mypy.ini", "x/eslint.config.mjs", ".nvim/x.lua"), "editors"),
        **dict.fromkeys((".rvmrc",), "shells"),
        **dict.fromkeys((".github/copilot-instructions.md", "x/.junie/guidelines.md"), "agents"),
        **dict.fromkeys(("tools/bazel", "x/tools/bazel", ".iex.exs"), "tools"),
    }
    for name in (*expected, "bazel", "copilot-instructions.md", "tools/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert {path: trigger.by for path, trigger in look(tmp_path).items()} == expected
    patch = "".join(f"diff --git a/{name} b/{name}\n" for name in expected).encode()
    assert run_by_git(patch) == [name for name, by in expected.items() if by == "git"]


def test_a_look_follows_no_link_out_and_ends_whatever_there_is(tmp_path: Path) -> None:
    """Links in circles, to elsewhere and to nothing, FIFOs, names that are no text:
    nothing is opened, nothing left out.
    """
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
    """A task that works in ``.claude/skills`` changes an agent's settings,
    whatever its files are called.
    """
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


@pytest.mark.parametrize("top", ["", "proj/"])
def test_what_looks_like_a_repository_hides_nothing(tmp_path: Path, top: str) -> None:
    """Three names make a folder look like the inside of a repository:
    what others run in it counts as anywhere.
    """
    place = tmp_path / top
    for folder in ("objects", "refs", "hooks", ".vscode", "src/.claude", "objects/deep", "w/.git"):
        (place / folder).mkdir(parents=True)
    counting = (
        *("CLAUDE.md", ".envrc", ".vscode/tasks.json", "src/.claude/settings.json", "w/.git/config"),
        *("config", "hooks/pre-commit", "objects/deep/.envrc"),
    )  # fmt: skip
    for file in ("HEAD", "main.py", *counting):
        (place / file).write_text("x")
    assert {*look(tmp_path)} == {f"{top}{path}" for path in counting}


def test_a_repository_in_two_places_is_known_by_either(tmp_path: Path) -> None:
    """One folder has HEAD and names the other, in which the settings lie that git obeys."""
    for folder in ("x", "lib/objects", "lib/refs", ".git/worktrees/y"):
        (tmp_path / folder).mkdir(parents=True)
    counting = ("x/commondir", "lib/config", ".git/worktrees/y/commondir")
    for file in ("x/HEAD", ".git/worktrees/y/HEAD", *counting):
        (tmp_path / file).write_text("x")
    assert {*look(tmp_path)} == {*counting}


@pytest.mark.parametrize("way", ["{top}/", "../task/", "{other}/", "../../link/task/", "./x/../"])
def test_what_a_link_leads_to_counts_however_it_is_written(tmp_path: Path, way: str) -> None:
    """Absolute, through the folder above, by another link of the machine's:
    what other programs follow, we do.
    """
    task = tmp_path / "real/task"
    for folder in (".git/hooks", "conf/vs", "x"):
        (task / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    target = way.format(top=task, other=tmp_path / "link/task")
    kept = {".envrc": "conf/envrc", ".vscode": "conf/vs", ".git/hooks/pre-commit": "x/hook"}
    for link, to in kept.items():
        up = "../../" if link.count("/") > 1 and target.startswith(".") else ""
        (task / link).symlink_to(f"{up}{target}{to}")
    files = {"conf/envrc": ".envrc", "conf/vs/tasks.json": ".vscode/tasks.json", "x/hook": ".git/hooks/pre-commit"}  # fmt: skip
    for file in files:
        (task / file).write_text("old")
    before = look(task)
    assert {*before} == {*kept, ".vscode/tasks.json"}
    assert {path for path in before if before[path].kind == "file"} == {*files.values()}
    for file in files:
        (task / file).write_text("new")
    assert changed(before, look(task), 0.0) == dict.fromkeys(files.values(), "modified")


def test_no_link_leads_onto_another_file_system(tmp_path: Path) -> None:
    """One that does not answer, or is mounted by a look,
    holds nothing up; /proc stands for it here.
    """
    (tmp_path / "conf").write_text("x")
    for name, way in ((".envrc", "/proc/self/root"), (".npmrc", "/proc/1/../..")):
        (tmp_path / name).symlink_to(f"{way}{tmp_path}/conf")
    assert [len(trigger.stamp) for trigger in look(tmp_path).values()] == [4, 4]


def test_links_of_skills_are_no_samples(tmp_path: Path) -> None:
    """Only git's own sample hooks are left out: elsewhere the name says nothing."""
    for folder in (".git/hooks", ".claude/skills", "other"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".git/hooks/commit-msg.sample", ".claude/x.sample", "other/SKILL.md"):
        (tmp_path / file).write_text("x")
    (tmp_path / ".claude/skills/y.sample").symlink_to("../../other")
    assert {*look(tmp_path)} == {
        *(".claude/x.sample", ".claude/skills/y.sample", ".claude/skills/y.sample/SKILL.md"),
    }


def test_settings_of_other_programs_that_keep_versions_count(tmp_path: Path) -> None:
    """Each in its own folder alone, and through a link in that folder's place;
    what fills the folder does not count.
    """
    own = {
        end[1:]
        for ends in names().files.values()
        for end, _ in ends
        if end.split("/")[1:2] and end.split("/")[1] in VERSIONS
    }
    assert len(own) > 10
    for path in own - {".jj/repo"}:
        folder, _, name = path.rpartition("/")
        for place in (tmp_path / folder, tmp_path / "sub/deep" / folder, tmp_path / "plain"):
            place.mkdir(parents=True, exist_ok=True)
            if not (place / name).is_dir():
                (place / name).write_text("x")
    (tmp_path / ".hg/hgrc").write_text("[hooks]")
    (tmp_path / ".hg/store/data").mkdir(parents=True)
    (tmp_path / ".hg/store/data/.envrc").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.hg").symlink_to(tmp_path / ".hg")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.jj").mkdir()
    (tmp_path / "other/.jj/repo").write_text("../../x")
    own -= {".jj/repo"}
    assert {*look(tmp_path)} - {path for path in look(tmp_path) if path.startswith("linked")} == {
        *own,
        *(f"sub/deep/{path}" for path in own),
        *(".hg/hgrc", "other/.jj/repo"),
    }
    assert {"linked/.hg", "linked/.hg/hgrc"} < {*look(tmp_path)}
