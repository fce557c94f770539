"""Hostile weather at the outbox of a whole daemon: collectors in a hurry, folders that vanish, disks that refuse."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from weather import Station, until


def _tasks(count: int) -> bytes:
    return json.dumps([{"first_prompt": f"task {i}"} for i in range(count)]).encode()


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Station]:
    """One daemon for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("weather-outbox")
    with Station(folder, model_server, model="steps-2").serving() as station:
        yield station


@contextlib.contextmanager
def _collecting(station: Station, goal: Path) -> Iterator[None]:
    """Take each folder away the very moment that its summary appears."""
    goal.mkdir()
    station.outbox.mkdir(exist_ok=True)
    over = threading.Event()

    def collect() -> None:
        while not over.is_set():
            for folder in list(station.outbox.iterdir()):
                if (folder / "summary.json").exists():
                    # Not even a second for whoever writes: the same instant.
                    folder.rename(goal / f"{folder.name}.{time.monotonic_ns()}")

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_collector_in_a_hurry_gets_each_folder_once_and_whole(
    station: Station, tmp_path: Path
) -> None:
    """Sixty folders and as many refusals, taken the instant that summary.json appears: nothing appears again."""
    goal = tmp_path / "collected"
    with _collecting(station, goal):
        for i in range(60):
            station.drop(f"hurry{i}.json", _tasks(2))
            station.drop(f"wrong{i}.json", b"[]")
        until(lambda: len(list(goal.iterdir())) >= 120, station.text)
        time.sleep(1.5)  # a write that failed is tried again after a second
        names = sorted(p.name.partition(".")[0] for p in goal.iterdir())
    assert names == sorted([f"hurry{i}" for i in range(60)] + [f"wrong{i}" for i in range(60)])
    for folder in goal.glob("hurry*"):
        assert {p.name for p in folder.iterdir()} == {
            *("request.json", "results.jsonl", "summary.json"),
            *("001", "001.json", "001.jsonl", "002", "002.json", "002.jsonl"),
        }
    assert station.told("outbox_trouble") == []


def test_single_results_may_be_taken_as_they_come(station: Station) -> None:
    """Whoever takes results one by one loses nothing: results.jsonl and the summary have them all."""
    station.drop("single.json", _tasks(12))
    folder, taken = station.outbox / "single", set()

    def collect() -> bool:
        for path in folder.glob("0*.json"):
            json.loads(path.read_bytes())
            path.unlink()
            taken.add(path.name)
        return len(taken) == 12

    until(collect, station.text)
    station.completed("single", 12)
    assert len((folder / "results.jsonl").read_text().splitlines()) == 12


def test_a_folder_taken_away_too_early_is_made_again(station: Station, tmp_path: Path) -> None:
    """While its tasks run: they go on, the rest is written to a new folder, and the log says so."""
    station.drop("early.json", _tasks(40))
    folder = station.outbox / "early"
    until((folder / "001.json").exists, station.text)
    shutil.move(folder, tmp_path / "early")
    station.completed("early", 40)
    assert len((folder / "results.jsonl").read_text().splitlines()) == 40
    found = {p.name for p in [*folder.glob("0*.json"), *(tmp_path / "early").glob("0*.json")]}
    assert len(found) == 40
    (told,) = station.told("outbox_trouble", "early")
    assert "taken away before its summary" in told["message"]


def _bounded(station: Station) -> None:
    """Trouble of some seconds is told a few times, not for each file and try."""
    assert 1 <= len(station.told("outbox_trouble")) <= 12, station.text()


def test_an_outbox_that_is_replaced_by_a_file_comes_back(tmp_path: Path, model_server: str) -> None:
    """Nothing is lost, no task is started in vain, and all of it is written once the folder is there again."""
    with Station(tmp_path, model_server, model="steps-2").serving() as station:
        station.drop("before.json", _tasks(1))
        station.completed("before")
        station.outbox.rename(tmp_path / "away")
        station.outbox.write_bytes(b"")
        for i in range(30):
            station.drop(f"b{i}.json", _tasks(2))
        station.drop("wrong.json", b"[]")
        until(lambda: station.told("outbox_trouble"), station.text)
        time.sleep(2)
        asked_meanwhile = len(station.asked())
        time.sleep(0.3)
        assert len(station.asked()) == asked_meanwhile
        station.outbox.unlink()
        (tmp_path / "away").rename(station.outbox)
        for i in range(30):
            station.completed(f"b{i}", 2)
        station.refused("wrong")
        _bounded(station)
        assert station.told("outbox_trouble", "works again")


@contextlib.contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "weather", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_an_outbox_on_a_disk_that_becomes_read_only(tmp_path: Path, model_server: str) -> None:
    """And later is none any more: tasks wait for it, and complete."""
    with (
        _mounted(tmp_path / "outbox"),
        Station(tmp_path, model_server, model="steps-2").serving() as station,
    ):
        station.drop("before.json", _tasks(1))
        station.completed("before")
        remount = ["mount", "-o", "remount", str(station.outbox)]
        subprocess.run([*remount, "-o", "ro"], check=True)
        station.drop("during.json", _tasks(12))
        until(lambda: station.told("outbox_trouble", "Read-only"), station.text)
        time.sleep(2)
        subprocess.run([*remount, "-o", "rw"], check=True)
        station.completed("during", 12)
        _bounded(station)
