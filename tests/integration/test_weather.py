"""Hostile weather at the inbox of a whole daemon."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from weather import TASK, Station, until

#: Long enough for what has not settled, or is not for us, to be taken all the same.
A_WHILE_S = 1.0


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Station]:
    """One daemon for all tests that leave it as it was."""
    with Station(tmp_path_factory.mktemp("weather"), model_server).serving() as station:
        yield station


def test_odd_names_become_batches_of_their_own(station: Station) -> None:
    """Newlines, bytes that are not UTF-8, 255 bytes, names that become alike: a folder each, the file in it."""
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
    assert "ending '' is not known" in station.refused("noending")
    requests = {p.name for p in station.outbox.glob("twin*/request.*")}
    assert requests == {"request.json", "request.md", "request.JSONL"}


def test_what_is_no_regular_file_is_left_alone(station: Station, tmp_path: Path) -> None:
    """Links, FIFOs, sockets, folders, devices: not opened, not moved, told once by name; others pass."""
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
        listener.bind(str(inbox / "socket.json"))
        (tmp_path / "hard.json").write_bytes(TASK)
        (inbox / "hard.json").hardlink_to(tmp_path / "hard.json")
        station.completed("hard")
        until(
            lambda: all(station.told("inbox_trouble", f"{x}.json is ") for x in odd), station.text
        )
        time.sleep(A_WHILE_S)
    assert {p.name for p in inbox.iterdir()} == {".claimed", *(f"{x}.json" for x in odd)}
    assert all(len(station.told("inbox_trouble", f"{x}.json is ")) == 1 for x in odd)
    (inbox / "folder.json").rmdir()
    for name in set(odd) - {"folder"}:
        (inbox / f"{name}.json").unlink()


def test_bad_files_are_refused_with_their_reasons(station: Station) -> None:
    """2 GB, a hundred thousand brackets, ids and keys given twice, no UTF-8, nothing: refused in words."""
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
    assert "2,147.5 MB" in station.refused("huge")
    assert "nested too deep" in station.refused("deep")
    assert "line 1: it is nested too deep" in station.refused("deeper")
    assert "[2].id: the task at place 1 has the id 'a' too" in station.refused("ids")
    keys = station.refused("keys")
    assert "first_prompt" in keys
    assert "metadata.a" in keys
    assert "not UTF-8" in station.refused("latin")
    assert "empty" in station.refused("empty")
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
    told = [x["batch"] for e in ("batch_received", "batch_rejected") for x in station.told(e)]
    assert len(told) == len(set(told))
    assert b'"7"' in (station.outbox / "burst7/request.json").read_bytes()


def test_a_file_written_over_a_long_time_is_left_until_it_is_whole(station: Station) -> None:
    """Kept open, or cut off and opened again within settle_s: nothing of it is taken before its end."""
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
            time.sleep(0.15)
        time.sleep(A_WHILE_S)
        assert not (station.outbox / "held").exists()
        assert not (station.outbox / "held-2").exists()
    station.completed("appended", 6)
    counts = sorted(station.summary(b)["total"] for b in ("held", "held-2"))
    assert counts == [1, 6]


def test_files_that_change_hands_while_they_are_claimed(station: Station, tmp_path: Path) -> None:
    """A name that is a file now and a link then: no link leads anywhere, and no half file is taken."""
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
    time.sleep(2)
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
