"""Full disks and folders that cannot be made: `check` and `status` name them before a task does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from repositories import needs_git, repository
from weather import filled, mounted

from tests.conftest import Spool

#: By folder, its trouble in the daemon's words.

pytestmark = pytest.mark.in_turns


def _place(spool: Spool, **paths: str) -> None:
    """Have folders lie elsewhere."""
    lines = "".join(f'{name} = "{place}"\n' for name, place in paths.items())
    config = spool.folder / "config.toml"
    config.write_text(f"{config.read_text()}\n[paths]\n{lines}")


def _said(spool: Spool, what: str) -> str:
    """Return what `check` says of a folder."""
    lines = json.loads(spool.batchd("check", "--offline", "--json").stdout)
    return "\n".join(
        f"{line['verdict']}: {line['detail']} → {line['mend']}"
        for line in lines
        if line["what"] == what
    )


def _troubles(spool: Spool) -> set[str]:
    status = json.loads(spool.batchd("status", "--json").stdout)
    return {trouble["what"] for trouble in status["daemon"]["troubles"]}


def test_a_full_disk_fails_the_check(spool: Spool) -> None:
    """Inbox, outbox and state directory, each on a disk of its own: `check` says it of each,
    with the room there is and the bound, until there is room again.
    """
    names = {"inbox": "inbox", "outbox": "outbox", ".batchd": "state"}
    with contextlib.ExitStack() as disks:
        for name in names:
            disks.enter_context(mounted(spool.folder / name))
            filled(spool.folder / name / ".filling", 0)
        assert "0.0 MB free on its disk, 4.2 MB needed" in _said(spool, "outbox")
        assert "until then no task is started → make room" in _said(spool, "outbox")
        for what in names.values():
            assert _said(spool, what).startswith("failed: "), what
        for name in names:
            (spool.folder / name / ".filling").unlink()
        assert _said(spool, "outbox").startswith("ok: ")


@needs_git
def test_a_disk_that_has_too_little_for_a_repository_or_a_patch_is_named(spool: Spool) -> None:
    """The tasks go back and wait, uncounted; `status` has the folder, what is free and the fix;
    with room they go on by themselves.
    """
    repository(spool.folder / "work/r", {"large": os.urandom(1 << 19).hex()})
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace("[pool]\n", "[pool]\nmax_attempts = 1\n"))
    mirrors, state = spool.folder / ".batchd-mirrors", spool.folder / ".batchd"
    check = "head -c 3000000 /dev/urandom > new.bin"
    asks = [{"first_prompt": n, "repo": "work/r", "check": check} for n in "ab"]
    with mounted(mirrors), mounted(state), spool.serving():
        filled(mirrors / ".filling", 1 << 17)
        filled(state / ".filling", 3 << 19)
        assert spool.batchd("submit", spool.write("b.json", asks)).returncode == 0
        for folder, what in ((mirrors, "mirror_trouble"), (state, "directory_trouble")):
            spool.eventually(lambda what=what: what in _troubles(spool))
            shown = " ".join(spool.batchd("status").stdout.split())
            said = shown.partition(f"{folder}: No space left on device: ")[2]
            assert "free on its disk, 8.4 MB needed; " in said
            assert "To go on: make room on that disk" in said
            (folder / ".filling").unlink()
        spool.eventually((spool.folder / "outbox/b/summary.json").exists)
        spool.eventually(lambda: not _troubles(spool))
    for number in (1, 2):
        result = spool.result("b", f"00{number}")
        assert (result["status"], result["patch"]["problem"]) == ("completed", None)
        assert [change["path"] for change in result["changes"]] == ["new.bin"]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("file/below/state", "is not a directory, so "),
        ("nowhere/state", "is a link that leads nowhere, so "),
        ("/proc/batchd/state", "cannot be made in /proc: "),
    ],
)
def test_a_state_directory_that_cannot_be_made_fails_the_check(
    spool: Spool, state: str, why: str
) -> None:
    """Below a file, below a link that leads nowhere, where the system makes no folders:
    it is no traceback, and nothing stays behind where it can be made.
    """
    (spool.folder / "file").write_text("")
    (spool.folder / "nowhere").symlink_to("/nowhere/at/all")
    _place(spool, state=state)
    done = spool.batchd("check", "--offline")
    assert done.returncode == 3
    said = _said(spool, "state")
    assert said.startswith("failed: ")
    assert why in said
    assert "or set [paths] state" in said


def test_a_folder_that_cannot_be_looked_at_fails_the_check(spool: Spool) -> None:
    """The system does not say whether it is there, as of a mount
    whose server is gone: so it is not said that it will be made.
    """
    _place(spool, outbox="x" * 300)
    said = _said(spool, "outbox")
    assert said.startswith("failed: ")
    assert "File name too long → put the folder back, with its disk mounted, or set " in said


def test_a_check_leaves_nothing_where_it_tries_to_make_folders(spool: Spool) -> None:
    """What is missing is tried, and is missing as before."""
    _place(spool, state="deep/er/state")
    before = {*spool.folder.iterdir()}
    assert _said(spool, "state") == f"ok: {Path(spool.folder, 'deep/er/state')} (will be made) → "
    assert {*spool.folder.iterdir()} == before


def test_a_disk_that_can_never_have_the_room_is_named_as_too_small(spool: Spool) -> None:
    """To make room on it would not help: `check` and `status` name the setting."""
    with mounted(spool.folder / "outbox", "size=1m"):
        said = _said(spool, "outbox")
        assert "its disk is too small: 1.0 MB in all, 4.2 MB needed" in said
        assert said.endswith("→ set [paths] outbox to a folder on a larger disk")
        with spool.serving():
            spool.write("b.json", [{"first_prompt": "x"}]).rename(spool.folder / "inbox/b.json")
            spool.eventually(lambda: _troubles(spool))
            shown = " ".join(spool.batchd("status").stdout.split())
            assert "To go on: set [paths] outbox to a folder on a larger disk" in shown
            assert not _said(spool, "outbox trouble"), "it is said once"


def test_a_read_only_disk_fails_the_check(spool: Spool) -> None:
    """It says so of an outbox, with the fix, until it can be written again."""
    outbox = spool.folder / "outbox"
    with mounted(outbox):
        subprocess.run(["mount", "-o", "remount,ro", str(outbox)], check=True)
        said = f"failed: {outbox} cannot be written: its disk is mounted read-only"
        assert _said(spool, "outbox") == f"{said} → mount that disk writable again"
        subprocess.run(["mount", "-o", "remount,rw", str(outbox)], check=True)
        assert _said(spool, "outbox").startswith("ok: ")


def test_an_order_is_refused_for_want_of_files_as_for_want_of_room(spool: Spool) -> None:
    """Where few more files fit on the state's disk, what adds to it is refused at once,
    with the count and the fix, beside a daemon and without; what needs no file is carried out.
    """
    state = spool.folder / ".batchd"
    with mounted(state, "size=64m,nr_inodes=100"):
        state.chmod(0o700)

        def crowd() -> None:
            for number in range(os.statvfs(state).f_ffree - 5):
                (state / f"filling-{number}").touch()

        def orders() -> None:
            refused = spool.batchd("retry", "past")
            assert refused.returncode == 3
            said = " ".join(refused.stderr.split())
            assert "the order is not carried out: " in said
            assert "more files (inodes) fit on its disk, 16 needed" in said
            assert "; delete files on that disk, then give it again" in said
            for order in ("pause --all", "resume", "prune --yes"):
                assert spool.batchd(*order.split()).returncode == 0, order

        with spool.serving():
            # It would work on: else it may have ended before it is cancelled.
            file = spool.write("past.json", [{"first_prompt": "x", "model": "standin/hang"}])
            for order in (("submit", file), ("cancel", "past")):
                assert spool.batchd(*order).returncode == 0, order
            spool.eventually((spool.folder / "outbox/past/summary.json").exists)
            crowd()
            orders()
        for filling in state.glob("filling-*"):
            filling.unlink()
        crowd()
        orders()
        for filling in state.glob("filling-*"):
            filling.unlink()
        with spool.serving():
            assert spool.batchd("retry", "past").returncode == 0
