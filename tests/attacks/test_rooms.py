"""No task file gets at batchd's own rooms, past the ceiling,
or out of the sandbox: at the claim, nor afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from camp import Camp

import batchd

pytestmark = pytest.mark.in_turns

ROOM = """
[workspace]
root = "."
allow = ["/"]
[limits.ceiling]
max_calls = 5
[providers.keyed]
base_url = "http://127.0.0.1:1/v1"
api_key_file = "keys/key"
[secrets]
files = { npm = "tokens/npm" }
[notify.tool]
kind = "command"
command = ["/bin/sh", "FOLDER/tool/notifier"]
on = ["budget_reached"]
"""


@pytest.fixture
def rooms(camp: Camp) -> Camp:
    """A spool that lets tasks work wherever they like, its own rooms apart."""
    for name in ("keys/key", "tokens/npm", "tool/notifier"):
        camp.own(camp.folder / name, "some-secret-value")
    config = camp.folder / "config.toml"
    config.write_text(config.read_text() + ROOM.replace("FOLDER", str(camp.folder)))
    return camp


def _rejection(spool: Camp, task: dict[str, Any], **batch: Any) -> str:
    """Drop a file past every check of ``submit``; return why the daemon refused it."""
    file = spool.write("drop.json", [{"first_prompt": "x", **task}], **batch)
    outbox = spool.folder / "outbox"
    outbox.mkdir(exist_ok=True)
    before = set(outbox.iterdir())
    file.rename(spool.folder / "inbox" / file.name)

    def done() -> set[Path]:
        new = set(outbox.iterdir()) - before
        return {folder for folder in new if (folder / "summary.json").exists()}

    spool.eventually(done)
    (folder,) = done()
    summary = spool.result(folder.name, "summary")
    assert summary["status"] == "rejected", summary
    return str(summary["errors"])


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("rooms")
def test_no_directory_of_batchds_own(rooms: Camp) -> None:
    """Neither a room itself, nor what holds it or lies in it, nor a link to any of these."""
    own = Path(batchd.__file__).parent
    for name in (
        "repo/.git/hooks",
        "bare/objects",
        "bare/refs",
        "bare/hooks",
        "bare/worktrees/x",
        "other/commondir",
        "hg/.hg",
        "home/.ssh",
    ):
        rooms.workplace(rooms.folder / name)
    for name in ("bare", "other"):
        (rooms.folder / name / "HEAD").write_text("ref: refs/heads/main\n")
    with rooms.serving():
        (rooms.folder / "link").symlink_to(".batchd")
        refused = {
            ".": "holds",
            ".batchd": "is the state folder",
            "link": "is the state folder",
            "inbox": "is the inbox folder",
            ".batchd/claimed": "lies in the state folder",
            "outbox": "is the outbox folder",
            "keys": "holds a key file",
            "tokens": "holds a key file",
            "repo/../keys": "holds a key file",
            str(own): "is the program itself",
            str(own / "sandbox"): "lies in the program itself",
            sys.prefix: "is the program itself",
            sys.base_prefix: "is the Python that batchd runs on",
            f"{sys.base_prefix}/lib": "lies in the Python that batchd runs on",
            str(own.parent): "holds the program itself",
            str(own.parent / "tests"): "lies in batchd's own checkout",
            "tool": "holds a program of [notify]",
            "repo/.git": "is a .git",
            "repo/.git/hooks": "lies in a .git",
            "bare": "is the inside of a git repository",
            "bare/hooks": "bare, the inside of a git repository",
            "bare/worktrees/x": "bare, the inside of a git repository",
            "other": "is the inside of a git repository",
            "hg/.hg": "is a .hg",
            "home": "holds a .ssh",
            "home/.ssh": "is a .ssh",
            "/etc/systemd/system": "lies in a folder of systemd's units",
            "/": "holds",
            # A link that may not be read, or leads out of the workspace;
            # it became of no result and no refusal.
            "/proc/1/root/tmp": "/tmp",
            "/proc/1/cwd": "proc/1/cwd",
        }
        for directory, why in refused.items():
            assert why in _rejection(rooms, {"dir": directory}), directory


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("rooms")
def test_no_directory_where_a_configuration_would_count(rooms: Camp) -> None:
    """Neither the folders of lists and configurations, there yet or not,
    nor a trusted directory; what lies below that is open.
    """
    home, spool = rooms.own(rooms.folder / "home"), rooms.own(rooms.folder / "spool/work").parent
    rooms.more["HOME"] = str(home)
    rooms.own(home / ".config")
    assert rooms.batchd("trust", spool).returncode == 0
    rooms.workplace(spool / "work")
    with rooms.serving():
        looks = "where batchd looks for its configuration"
        # It holds the Python of its user, too.
        assert " holds " in _rejection(rooms, {"dir": "home"})
        for directory in ("home/.config", "spool", "/etc"):
            assert f"holds {looks}" in _rejection(rooms, {"dir": directory}), directory
        for directory in ("home/.config/batchd", "/etc/batchd"):
            assert f"is {looks}" in _rejection(rooms, {"dir": directory}), directory
        assert rooms.play([{"first_prompt": "x", "dir": "spool/work"}])["001"]["status"] == "completed"  # fmt: skip


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("unknown keys", "ceiling")
def test_no_key_of_a_task_file_loosens_anything(rooms: Camp) -> None:
    """No key names the sandbox or the provider; no layer of limits goes past the ceiling."""
    with rooms.serving():
        for name in ("sandbox", "backend", "user", "mirrors", "providers", "base_url", "secrets"):
            assert "there is no such key" in _rejection(rooms, {name: "none"})
            assert "there is no such key" in _rejection(rooms, {}, **{name: "none"})
        for calls in (0, 6, 10**15):
            limits = {"max_calls": calls}
            assert "above [limits.ceiling]" in _rejection(rooms, {"limits": limits})
            assert "above [limits.ceiling]" in _rejection(rooms, {}, limits=limits)
        assert "[sandbox] network does not allow it" in _rejection(rooms, {"network": True})
        assert "[sandbox] network does not allow it" in _rejection(rooms, {}, network=True)


def _link(path: Path, target: Path) -> None:
    path.rename(path.with_name("away"))
    path.symlink_to(target)


#: What somebody puts in the way of a task's directory once its file was accepted.
SWAPS: dict[str, Callable[[Path], None]] = {
    "the directory": lambda f: _link(f / "work/repo", f / "keys"),
    "one above": lambda f: _link(f / "work", f / "victim"),
    "a fresh one": lambda f: (f / "outbox/batch/fresh").symlink_to(f / "keys"),
}


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("links")
@pytest.mark.parametrize("swap", SWAPS)
def test_a_link_put_in_place_between_claim_and_start_is_not_followed(
    rooms: Camp, swap: str
) -> None:
    """The task ends as an error;
    nothing is written to where the link leads, and nothing changes its owner.
    """
    folder = rooms.folder
    for name in ("work/repo", "victim/repo"):
        rooms.workplace(folder / name)
    named = {"id": "named", "first_prompt": "x", "dir": "work/repo"}
    fresh = {"id": "fresh", "first_prompt": "x"}
    watched = [folder / "keys", folder / "victim/repo"]
    before = [(path.stat().st_uid, path.stat().st_mtime_ns) for path in watched]
    with rooms.serving():
        rooms.batchd("pause", "--all")
        rooms.batchd("submit", rooms.write("batch.json", [fresh if "fresh" in swap else named]))
        rooms.eventually((folder / "outbox/batch/request.json").exists)
        SWAPS[swap](folder)
        rooms.batchd("resume")
        rooms.eventually((folder / "outbox/batch/summary.json").exists)
    result = rooms.result("batch", "fresh" if "fresh" in swap else "named")
    assert (result["status"], result["reason"]) == ("error", "sandbox")
    assert "ymbolic link" in result["error"]["message"]
    assert [(path.stat().st_uid, path.stat().st_mtime_ns) for path in watched] == before
