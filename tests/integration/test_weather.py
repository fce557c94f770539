"""Hostile weather at the inbox of a whole daemon."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sockets
from patience import PATIENCE_S
from weather import TASK, Station, filled, mounted, until

pytestmark = pytest.mark.in_turns

#: Long enough for what has not settled, or is not for us, to be taken all the same.
A_WHILE_S = 1.0


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Station]:
    """One daemon for all tests that leave it as it was."""
    with Station(
        tmp_path_factory.mktemp("weather"), model_server, settle_s=1.0
    ).serving() as station:
        yield station


def test_odd_names_become_batches_of_their_own(station: Station) -> None:
    """Newlines, bytes that are not UTF-8, 255 bytes, names that become alike:
    a folder each, the file in it.
    """
    names = [b"a\nb.json", b"a b.json", b"\xff\xfe.json", b"-rf.json", "\u4efb\u52a1.json".encode()]
    names += [b"n" * 250 + b".json", b"twin.json", b"twin.md", b"twin.JSONL", b"noending"]
    for name in names:
        station.drop(name)
    for batch in (
        "a-b",
        "a-b-2",
        "batch",
        "rf",
        "\u4efb\u52a1",
        "n" * 100,
        "twin",
        "twin-2",
        "twin-3",
    ):
        station.completed(batch)
    assert "the name has no ending" in station.refused("noending")
    requests = {p.name for p in station.outbox.glob("twin*/request.*")}
    assert requests == {"request.json", "request.md", "request.JSONL"}


def test_what_is_no_regular_file_is_left_alone(station: Station, tmp_path: Path) -> None:
    """Links, FIFOs, sockets, folders, devices: not opened,
    not moved, reported once by name; others pass.
    """
    inbox = station.inbox
    (tmp_path / "secret.json").write_bytes(TASK)
    (inbox / "link.json").symlink_to(tmp_path / "secret.json")
    (inbox / "dangling.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(inbox / "fifo.json")
    (inbox / "folder.json").mkdir()
    odd = ["link", "dangling", "fifo", "folder", "socket"]
    if os.geteuid() == 0:
        os.mknod(
            inbox / "device.json", stat.S_IFCHR | 0o666, os.makedev(1, 5)
        )  # /dev/zero has no end
        odd.append("device")
    with socket.socket(socket.AF_UNIX) as listener:
        sockets.bind(listener, inbox / "socket.json")
        (tmp_path / "hard.json").write_bytes(TASK)
        (inbox / "hard.json").hardlink_to(tmp_path / "hard.json")
        station.completed("hard")
        until(
            lambda: all(station.logged("inbox_trouble", f"{x}.json is ") for x in odd), station.text
        )
        time.sleep(A_WHILE_S)
    assert {p.name for p in inbox.iterdir()} == {f"{x}.json" for x in odd}
    assert all(len(station.logged("inbox_trouble", f"{x}.json is ")) == 1 for x in odd)
    (inbox / "folder.json").rmdir()
    for name in set(odd) - {"folder"}:
        (inbox / f"{name}.json").unlink()


def test_bad_files_are_refused_with_their_reasons(station: Station) -> None:
    """2 GB, ten million zeros, a hundred thousand brackets,
    ids and keys given twice, no UTF-8, nothing: refused in words.
    """
    with (station.folder / "huge.json").open("wb") as huge:
        huge.truncate(2 << 30)
    (station.folder / "huge.json").rename(station.inbox / "huge.json")
    station.drop("deep.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    station.drop("deeper.jsonl", b"[" * 100_000 + b"\n" + TASK)
    twice = [{"id": "a", "first_prompt": "x"}, {"id": "b", "first_prompt": "x"}]
    station.drop("ids.json", json.dumps([*twice, twice[0]]).encode())
    station.drop(
        "keys.json",
        b'{"first_prompt": "one", "metadata": {"a": {"b": 1, "b": 2}}, "first_prompt": "two"}',
    )
    station.drop("latin.md", "gr\u00fc\u00dfe".encode("latin-1"))
    station.drop("empty.json", b"")
    station.drop("zeros.json", b"[" + b"0," * 10_000_000 + b"0]")
    station.drop("lines.jsonl", b"0\n" * 5_000_000)
    assert "2,147.5 MB" in station.refused("huge")
    assert "nested too deep" in station.refused("deep")
    assert "line 1: it is nested too deep" in station.refused("deeper")
    assert "[2].id: tasks[0] has the id 'a' too" in station.refused("ids")
    keys = station.refused("keys")
    assert "first_prompt" in keys
    assert "metadata.a" in keys
    assert "not UTF-8" in station.refused("latin")
    assert "empty" in station.refused("empty")
    assert "more than 4,000,000 values" in station.refused("zeros")
    assert "more than 50,000 tasks" in station.refused("lines")
    assert (station.outbox / "huge/request.json").stat().st_size == 2 << 30
    assert station.rss_mb() < 300
    (station.outbox / "huge/request.json").unlink()


def test_a_burst_is_taken_up_once_each(station: Station) -> None:
    """1,500 files at once: each has one folder with its own content, and one line in the log."""
    station.drop("burst-first.json")
    for i in range(1500):
        data = TASK if i % 10 == 0 else b'{"tasks": "%d"}' % i
        (station.inbox / f"burst{i}.json").write_bytes(data)
    for i in range(1500):
        assert station.summary(f"burst{i}")["status"] == ("finished" if i % 10 == 0 else "rejected")
    assert len(list(station.outbox.glob("burst[0-9]*"))) == 1500
    batches = [x["batch"] for e in ("batch_received", "batch_rejected") for x in station.logged(e)]
    assert len(batches) == len(set(batches))
    assert b'"7"' in (station.outbox / "burst7/request.json").read_bytes()


def test_a_file_written_over_a_long_time_is_left_until_it_is_whole(station: Station) -> None:
    """Kept open, or cut off and opened again within settle_s:
    nothing of it is taken before its end.
    """
    data = json.dumps({"tasks": [{"first_prompt": f"p{i}"} for i in range(6)]}).encode()
    pieces = [data[i : i + 40] for i in range(0, len(data), 40)]
    with (
        (station.inbox / "held.json").open("wb") as held,
        (station.inbox / "held.md").open("wb") as text,
    ):
        for piece in pieces:
            for file in (held, text):
                file.write(piece)
                file.flush()
            with (station.inbox / "appended.json").open("ab") as appended:
                appended.write(piece)
            time.sleep(0.1)
        time.sleep(A_WHILE_S)
        assert not (station.outbox / "held").exists()
        assert not (station.outbox / "held-2").exists()
    station.completed("appended", 6)
    counts = sorted(station.summary(b)["total"] for b in ("held", "held-2"))
    assert counts == [1, 6]


def test_files_that_change_hands_while_they_are_claimed(station: Station, tmp_path: Path) -> None:
    """A name that is a file now and a link then:
    no link leads anywhere, and no half file is taken.
    """
    (tmp_path / "secret").write_text('{"first_prompt": "SECRET"}')
    over = threading.Event()

    def swap(name: str) -> None:
        new, link = tmp_path / f"{name}.new", tmp_path / f"{name}.link"
        while not over.is_set():
            new.write_bytes(TASK)
            link.symlink_to(tmp_path / "secret")
            for path in (new, link):
                path.rename(station.inbox / f"{name}.json")
                time.sleep(0.0005)
            (station.inbox / f"{name}.json").unlink(missing_ok=True)

    threads = [threading.Thread(target=swap, args=(f"swap{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    over.set()
    for thread in threads:
        thread.join()
    station.drop("after-swap.json")
    station.completed("after-swap")
    found = list(station.outbox.glob("swap*"))
    assert found
    for folder in found:
        assert station.summary(folder.name)["status"] == "finished"
        request = folder / "request.json"
        assert not request.is_symlink()
        assert request.read_bytes() == TASK
    assert not any("SECRET" in x["prompt"] for x in station.asked())


def test_a_file_that_vanishes_once_it_is_claimed(station: Station) -> None:
    """It is not taken up, and the log says so; or it was read in time, and runs.

    Others are not touched.
    """
    over = threading.Event()

    def thieve() -> None:
        while not over.is_set():
            for path in (station.folder / ".batchd/claimed").glob("*-victim*"):
                path.unlink(missing_ok=True)

    thread = threading.Thread(target=thieve)
    thread.start()
    for i in range(150):
        station.drop(f"victim{i}.json")
    station.drop("bystander.json")
    station.completed("bystander")
    over.set()
    thread.join()
    lost = {x["message"].split(".json")[0] for x in station.logged("inbox_trouble", "victim")}
    for i in range(150):
        if f"victim{i}" not in lost:
            station.completed(f"victim{i}")
        else:
            assert not (station.outbox / f"victim{i}").exists()
    assert lost


@pytest.mark.parametrize("harm", ["removed", "renamed"])
def test_an_inbox_that_is_taken_away_is_made_again(
    station: Station, tmp_path: Path, harm: str
) -> None:
    """Removed or renamed under a running daemon:
    the folder is made and watched again, and takes files.
    """
    before = station.inbox.stat().st_ino, len(station.logged("inbox_trouble", "is watched again"))
    if harm == "removed":
        shutil.rmtree(station.inbox)
    else:
        station.inbox.rename(tmp_path / "old")
        (tmp_path / "old/late.json").write_bytes(TASK)  # who has it open goes on in the old one
    until(station.inbox.exists, station.text)
    station.drop(f"again-{harm}.json")
    station.completed(f"again-{harm}")
    if harm == "renamed":
        assert station.inbox.stat().st_ino != before[0]
        assert (tmp_path / "old/late.json").exists()
        assert not (station.outbox / "late").exists()


def test_the_same_file_again_while_its_first_run_goes_on(station: Station) -> None:
    """Ten drops of one name in a row are ten batches, each with its own tasks."""
    for _ in range(10):
        station.drop("again.json", b'{"tasks": [{"first_prompt": "a"}, {"first_prompt": "b"}]}')
        until(lambda: not (station.inbox / "again.json").exists(), station.text)
    for name in ("again", *(f"again-{i}" for i in range(2, 11))):
        station.completed(name, 2)


def test_files_that_cannot_be_claimed_or_read(station: Station) -> None:
    """A file that the kernel will not let go stays, reported once;
    the others are taken, and it too once it can be.
    """
    path = station.inbox / "stuck.json"
    path.write_bytes(b"{")
    chattr = shutil.which("chattr") or "chattr"
    if subprocess.run([chattr, "+i", str(path)], check=False, capture_output=True).returncode:
        path.unlink()
        pytest.skip("needs a file system with immutable files, and root")
    try:
        for i in range(20):
            station.drop(f"beside{i}.json")
        until(lambda: station.logged("inbox_trouble", "stuck.json cannot be claimed"), station.text)
        for i in range(20):
            station.completed(f"beside{i}")
        time.sleep(A_WHILE_S)
        assert len(station.logged("inbox_trouble", "stuck.json cannot be claimed")) == 1
    finally:
        subprocess.run([chattr, "-i", str(path)], check=True)
    assert "line 1, column 2" in station.refused("stuck")


def test_a_second_daemon_is_refused(station: Station) -> None:
    """It ends at once with 3, and says who has the spool."""
    assert station.process is not None
    done = subprocess.run(
        station.command(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3
    assert f"in use by the process {station.process.pid}" in done.stderr
    assert "Traceback" not in done.stderr


def _elsewhere(tmp_path: Path) -> Path:
    """Return a folder on another file system than ``tmp_path``."""
    folder = Path("/dev/shm", f"batchd-{os.getpid()}-{tmp_path.name}")
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    return folder


def test_two_daemons_share_an_inbox_on_another_file_system(
    tmp_path: Path, model_server: str
) -> None:
    """One polls, one hears from the kernel: each file is run exactly once, nothing is left.

    What one has claimed and not moved on, the other leaves alone when it starts.
    """
    inbox = _elsewhere(tmp_path)
    one = Station(tmp_path / "one", model_server, inbox=inbox, watch="poll", scan_s=0.05)
    other = Station(tmp_path / "other", model_server, inbox=inbox, scan_s=0.05)
    mine = f"shared {tmp_path.name}"

    def drop(name: str, count: int) -> None:
        for i in range(count):
            (inbox / ".new").write_bytes(json.dumps({"first_prompt": f"{mine} {name}{i}"}).encode())
            (inbox / ".new").rename(inbox / f"{name}{i}.json")

    def found() -> list[str]:
        return [p.parent.name for s in (one, other) for p in s.outbox.glob("shared*/summary.json")]

    dropper = threading.Thread(target=drop, args=("shared", 100))
    one.outbox.parent.mkdir(exist_ok=True)
    one.outbox.write_bytes(b"")  # so what it claims stays where it is for now
    try:
        with one.serving():
            drop("held", 10)
            # No rename leads from there to a state directory.
            claimed = inbox / ".claimed"
            until(lambda: len(list(claimed.iterdir())) == 10, one.text)
            with other.serving():
                until(
                    lambda: other.logged("inbox_trouble", "10 files in .claimed belong"), other.text
                )
                assert other.logged("batch_received") == []
                one.outbox.unlink()
                for i in range(10):
                    one.completed(f"held{i}")
                dropper.start()
                dropper.join()
                until(lambda: len(found()) >= 100, other.text)
                time.sleep(A_WHILE_S / 2)
        assert sorted(found()) == sorted(f"shared{i}" for i in range(100))
        assert list(claimed.iterdir()) == []
        prompts = [x["prompt"] for x in one.asked() if x["prompt"].startswith(mine)]
        assert len(prompts) == len(set(prompts)) == 110
    finally:
        if dropper.ident:
            dropper.join()
        shutil.rmtree(inbox, ignore_errors=True)


def test_status_shows_an_inbox_that_is_none(tmp_path: Path, model_server: str) -> None:
    """A file in its place is shown, with since when and the fix, until the folder is back."""
    with Station(tmp_path, model_server).serving() as station:
        assert station.troubles() == []
        station.inbox.rename(tmp_path / "away")
        station.inbox.write_bytes(b"")
        until(station.troubles, station.text)
        (trouble,) = station.troubles()
        assert (trouble["what"], trouble["mend"][:19]) == ("inbox_trouble", "put the folder back")
        assert str(station.inbox) in trouble["message"]
        assert "files cannot be dropped into the inbox, or cannot be taken up" in station.status()
        station.inbox.unlink()
        (tmp_path / "away").rename(station.inbox)
        until(lambda: station.troubles() == [], station.text)
        station.drop("again.json")
        station.completed("again")


def test_an_inbox_that_is_a_link_is_watched_where_it_leads(
    tmp_path: Path, model_server: str
) -> None:
    """Files are taken up by the kernel's word, not by the scan alone;
    a link that is replaced is noticed.
    """
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    scan_s = 6.0
    station = Station(tmp_path, model_server, scan_s=scan_s)
    station.inbox.symlink_to("first")
    with station.serving():
        time.sleep(0.5)  # the first scan is over, the next one far
        for i in range(3):
            begun = time.monotonic()
            station.drop(f"event{i}.json")
            until(lambda i=i: not (station.inbox / f"event{i}.json").exists())  # type: ignore[misc]
            assert time.monotonic() - begun < scan_s / 2
        until(lambda: len(station.logged("batch_received")) == 3, station.text)
        (tmp_path / "new-link").symlink_to("second")
        (tmp_path / "new-link").rename(station.inbox)
        until(lambda: station.logged("inbox_trouble", "is watched again"), station.text)
        begun = time.monotonic()
        station.drop("elsewhere.json")
        until(lambda: not (tmp_path / "second/elsewhere.json").exists())
        assert time.monotonic() - begun < scan_s / 2
        for batch in ("event0", "event1", "event2", "elsewhere"):
            station.completed(batch)


_LONG = "k" * (1 << 20)


@pytest.mark.parametrize(
    "task",
    [
        {"first_prompt": "x", _LONG: 1},
        {"first_prompt": "x", "metadata": {_LONG: float("nan")}},
        {"first_prompt": "x", "model": f"{_LONG}/m"},
        {"first_prompt": "x", "model": f"standin/{_LONG}"},
        {"first_prompt": "x", "id": _LONG},
        {"first_prompt": "x", "after": [_LONG]},
        {"first_prompt": "x", "dir": _LONG},
    ],
    ids=["key", "place", "provider", "model", "id", "after", "dir"],
)
def test_what_is_of_any_length_is_shown_short(
    station: Station, request: pytest.FixtureRequest, task: dict[str, Any]
) -> None:
    """A megabyte in a key, a name or a path is no megabyte in the refusal, nor in the log."""
    name = f"long-{request.node.callspec.id}"
    station.drop(f"{name}.json", json.dumps(task).encode())
    refusal = station.refused(name)
    assert len(refusal) < 2000
    assert (station.outbox / name / "summary.json").stat().st_size < 4000
    assert max(map(len, station.text().splitlines())) < 4000


def test_submit_names_the_inbox_whose_disk_is_full(tmp_path: Path, model_server: str) -> None:
    """One line says which file could not be written, and why; nothing half is left."""
    with mounted(tmp_path / "inbox"):
        station = Station(tmp_path, model_server)
        filled(station.inbox / ".filling", 0)
        command = [*station.command()[:-1], "submit", "--prompt", "x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        path = station.inbox / "prompt.json"
        assert done.stderr == f"batchd: {path}: No space left on device\n"
        assert [p.name for p in station.inbox.iterdir()] == [".filling"]


def test_without_watches_it_looks_itself(tmp_path: Path, model_server: str) -> None:
    """Where the kernel's watches are used up, it says so, and finds files by looking."""
    none_left = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    # Under its own number: to a root of the namespace,
    # all that is the machine's root's would be a stranger's.
    prefix = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", none_left, "sh"]
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    # In the namespace there is no user to run commands:
    # what is refused shows as well that it was found.
    station = Station(tmp_path, model_server, more='[sandbox]\nbackend = "none"\n')
    with station.serving(*prefix):
        station.drop("a.json", b"")
        station.refused("a")
        assert station.logged("inbox_trouble", "no events, so it is looked at every 0.3 s")


def test_a_start_that_cannot_be_is_reported_in_one_line(tmp_path: Path, model_server: str) -> None:
    """A file in the inbox's place ends the start with 3 and a line that names it."""
    station = Station(tmp_path, model_server)
    station.inbox.write_bytes(b"")
    done = subprocess.run(
        station.command(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3
    assert str(station.inbox) in done.stderr
    assert "Traceback" not in done.stderr


def test_who_edits_a_file_in_the_inbox_learns_that_each_save_is_a_batch(station: Station) -> None:
    """The second save within a short while is taken too, and the log says what that costs;
    a moved file is no save.
    """
    for number in range(3):
        station.drop("moved.json")
        (station.inbox / "edited.json").write_bytes(TASK)
        name = f"edited-{number + 1}" if number else "edited"
        until((station.outbox / name / "summary.json").exists, station.text, within_s=PATIENCE_S)
    (line,) = station.logged("inbox_trouble", "each time it is taken as a batch of its own")
    assert line["message"].startswith("edited.json is written here again and again")
