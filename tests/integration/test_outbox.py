"""Files that appear whole in the outbox, on real file systems."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from batchd import trees
from batchd.records import Batch, BatchNaming
from batchd.spool import files, outbox


def _batch(folder: Path) -> Batch:
    return Batch(name="b", claim="c", outbox=str(folder), request="request.json", received_at=0.0)


def test_publish(tmp_path: Path) -> None:
    """The folder is made, the content whole, nothing else left;
    what may not be replaced is kept.
    """
    path = tmp_path / "outbox/b/001.json"
    outbox.publish(path, b"one", replace=True)
    outbox.publish(path, b"two", replace=True)
    with pytest.raises(FileExistsError):
        outbox.publish(path, b"three", replace=False)
    outbox.publish(path.with_name("002.json"), b"new", replace=False)
    assert path.read_bytes() == b"two"
    assert sorted(p.name for p in path.parent.iterdir()) == ["001.json", "002.json"]


def test_a_folder_that_is_collected_in_the_instant_of_its_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has the whole of it;
    it is not tried again, which would make a second folder.
    """
    rename = os.rename

    def collected(*args: Any, **kwargs: Any) -> None:
        rename(*args, **kwargs)
        rename(tmp_path / "b", tmp_path / "collected")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", collected)
        outbox.publish(tmp_path / "b/summary.json", b"{}", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["collected"]
    assert [p.name for p in (tmp_path / "collected").iterdir()] == ["summary.json"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A failure is raised, the old file stands, and no temporary one is left."""
    path = tmp_path / "b/001.json"
    outbox.publish(path, b"old", replace=True)

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, fail, replace=True)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["001.json"]


def _publish_for_ever(path: Path, letter: bytes) -> None:
    while True:
        outbox.publish(path, letter * 300_000, replace=True)


def test_readers_see_whole_files_though_writers_die(tmp_path: Path) -> None:
    """Two writers of one file, killed at any point:
    a reader sees one or the other; the summary clears up.
    """
    path = tmp_path / "b/001.json"
    spawn = multiprocessing.get_context("spawn")
    for _ in range(3):
        writers = [spawn.Process(target=_publish_for_ever, args=(path, x)) for x in (b"a", b"b")]
        for writer in writers:
            writer.start()
        seen = 0
        while seen < 20:
            if path.exists():
                data = path.read_bytes()
                assert len(data) == 300_000
                assert len(set(data)) == 1
                seen += 1
        for writer in writers:
            assert writer.pid
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            writer.close()
    outbox.publish(path.with_name("summary.json"), b"{}", replace=True)
    assert sorted(p.name for p in path.parent.iterdir()) == ["001.json", "summary.json"]


def test_the_request_is_moved_and_can_be_moved_again(tmp_path: Path) -> None:
    """The claimed file lies in its batch's folder, untouched; a second move changes nothing."""
    claimed = tmp_path / "claimed"
    claimed.write_bytes(b"\xff not even text")
    batch = _batch(tmp_path / "outbox")
    target = outbox.publish_request(claimed, batch)
    assert target == tmp_path / "outbox/b/request.json"
    assert outbox.publish_request(claimed, batch) == target
    assert target.read_bytes() == b"\xff not even text"
    assert not claimed.exists()
    target.unlink()
    with pytest.raises(FileNotFoundError):
        outbox.publish_request(claimed, batch)


@pytest.mark.skipif(
    Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev, reason="needs two file systems"
)
def test_the_request_crosses_file_systems(tmp_path: Path) -> None:
    """Between file systems it is copied whole, then unlinked,
    also when a crash had come between.
    """
    claimed = Path("/dev/shm") / f"batchd-test-{os.getpid()}"
    batch = _batch(tmp_path / "outbox")
    try:
        for _ in range(2):
            claimed.write_bytes(b"x" * 3_000_000)
            claimed.chmod(0o600)
            target = outbox.publish_request(claimed, batch)
            assert target.read_bytes() == b"x" * 3_000_000
            assert not claimed.exists()
            assert target.stat().st_mode & 0o777 == 0o600, "a private file would be open here"
        assert [p.name for p in target.parent.iterdir()] == ["request.json"]
    finally:
        claimed.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("task.json", "task"),
        ("my tasks (1).v2.jsonl", "my-tasks-1-v2"),
        ("../../etc/passwd", "passwd"),
        ("-rf .json", "rf"),
        ("a\nb\x1b[31m.json", "a-b-31m"),
        ("任务.json", "任务"),
        ("\udcff.json", "batch"),
        ("...", "batch"),
        ("e\u0301.md", "é"),
        ("x" * 300 + ".json", "x" * 100),
        ("任" * 50, "任" * 33),
    ],
)
def test_names_of_batches(filename: str, name: str) -> None:
    """Letters, digits, _ and - at most 100 bytes,
    cut between characters, whatever the file was called.
    """
    assert outbox.batch_name(filename) == name


def test_a_rename_without_replacing_works_where_the_kernel_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems without RENAME_NOREPLACE the check is made by hand."""
    monkeypatch.setattr(trees, "libc", lambda: None)
    outbox.publish(tmp_path / "a", b"1", replace=False)
    with pytest.raises(FileExistsError):
        outbox.publish(tmp_path / "a", b"2", replace=False)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_publishing_needs_nothing_heavy() -> None:
    """Workers publish: it loads neither pydantic nor watchdog."""
    script = "import sys; from batchd.spool import outbox; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert not {"pydantic", "watchdog", "structlog"} & set(out.stdout.split())


def test_a_name_is_reserved_for_one_claim(tmp_path: Path) -> None:
    """The one that comes second gets none; the one that had it has it still;
    the summary is the end of the mark.
    """
    one, two = (replace(_batch(tmp_path / "outbox"), claim=claim) for claim in ("one", "two"))
    assert outbox.reserve(one, "b") is BatchNaming.OURS
    assert outbox.reserve(two, "b") is BatchNaming.PENDING
    assert outbox.reserve(one, "b") is BatchNaming.OURS
    (tmp_path / "outbox/file").touch()
    assert outbox.reserve(two, "file") is BatchNaming.TAKEN
    assert outbox.reserve(two, "b-2") is BatchNaming.OURS
    assert sorted(p.name for p in (tmp_path / "outbox").iterdir()) == ["b", "b-2", "file"]
    outbox.publish(tmp_path / "outbox/b/summary.json", b"{}", replace=True)
    assert [p.name for p in (tmp_path / "outbox/b").iterdir()] == ["summary.json"]
    assert outbox.reserve(two, "b") is BatchNaming.TAKEN


def test_what_dead_writers_left_is_swept_before_the_summary(tmp_path: Path) -> None:
    """Whatever numbers they had: in a container the next daemon has that of the last.
    Another's file of nearly such a name stays.
    """
    for name in (f".001.json.{os.getpid()}-0.tmp", ".a b.patch.1999999999-12.tmp", ".mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    outbox.publish(tmp_path / "summary.json", b"{}", replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.tmp", "summary.json"]


def test_a_link_in_the_place_of_a_batchs_folder_is_not_written_through(tmp_path: Path) -> None:
    """A user who may write into the outbox puts it there:
    what would be published is refused, and nothing lands behind it.
    """
    away, place = tmp_path / "away", tmp_path / "outbox/b"
    away.mkdir()
    place.parent.mkdir()
    place.symlink_to(away)
    claimed = tmp_path / "claimed.json"
    claimed.write_bytes(b"{}")
    batch = Batch(
        name="b", claim="c", outbox=str(place.parent), received_at=0.0, request="request.json"
    )
    for publish in (
        lambda: outbox.publish(place / "summary.json", b"x", replace=True),
        lambda: outbox.publish(place / "results.jsonl", lambda f: f.write(b"x"), replace=True),
        lambda: outbox.publish_task(place, "001", "transcript", "{}"),
        lambda: outbox.publish_results(place, {"001": "{}"}),
        lambda: outbox.publish_request(claimed, batch),
    ):
        with pytest.raises(OSError, match="Not a directory"):
            publish()
    (error,) = outbox.publish_requests([(claimed, batch)])
    assert isinstance(error, OSError)
    assert claimed.exists()
    assert not any(away.iterdir())
