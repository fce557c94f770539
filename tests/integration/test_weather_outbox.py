"""Hostile weather at the outbox of a whole daemon:
collectors in a hurry, folders that vanish, disks that refuse.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from patience import PATIENCE_S
from weather import Station, answer_after, filled, mounted, until

from batchd.cli.submit import DroppedBatch
from batchd.store.queries import StoreReader
from tests.conftest import model_process

pytestmark = pytest.mark.in_turns


def _tasks(count: int) -> bytes:
    return json.dumps([{"first_prompt": f"task {i}"} for i in range(count)]).encode()


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model_server: str) -> Iterator[Station]:
    """One daemon for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("weather-outbox")
    with Station(folder, model_server, model="steps-2", reports=True).serving() as station:
        yield station


#: Takes each folder the very moment that its summary appears, by looking all the time.
_COLLECTOR = """
import os, sys
outbox, goal, left = sys.argv[1], sys.argv[2], set(sys.argv[3:])
print("ready", flush=True)
while left:
    for name in tuple(left):
        if os.path.exists(f"{outbox}/{name}/summary.json"):
            os.rename(f"{outbox}/{name}", f"{goal}/{name}")
            left.discard(name)
"""


def test_a_collector_in_a_hurry_gets_each_folder_once_and_whole(
    station: Station, tmp_path: Path
) -> None:
    """Folders taken the instant that summary.json appears are complete,
    and nothing appears in their place.
    """
    goal = tmp_path / "collected"
    goal.mkdir()
    names = [f"{kind}{i}" for i in range(50) for kind in ("hurry", "wrong")]
    command = [sys.executable, "-c", _COLLECTOR, str(station.outbox), str(goal), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as collector:
        assert collector.stdout
        collector.stdout.readline()
        for name in names:
            station.drop(f"{name}.json", _tasks(1) if "hurry" in name else b"[]")
        collector.wait(PATIENCE_S)
    time.sleep(1.5)  # a write that failed is tried again after a second
    assert not any((station.outbox / name).exists() for name in names)
    for folder in goal.glob("hurry*"):
        assert {p.name for p in folder.iterdir()} == {
            *("request.json", "results.jsonl", "report.html", "summary.json"),
            *("001", "001.json", "001.jsonl"),
        }
    assert {p.name for p in (goal / "wrong0").iterdir()} == {
        "errors.txt",
        "request.json",
        "summary.json",
    }
    assert station.logged("outbox_trouble") == []


def test_who_waits_for_a_batch_finds_it_though_a_collector_was_faster(
    station: Station, tmp_path: Path
) -> None:
    """Its folder is gone before the first look: the store still has its name."""
    data = _tasks(3)
    station.drop("fast.json", data)
    station.completed("fast", 3)
    shutil.move(station.outbox / "fast", tmp_path / "fast")
    with StoreReader(station.folder / ".batchd/batchd.db") as reader:
        until(lambda: reader.batch("fast").published_at, station.text)
        [found] = DroppedBatch("", "fast.json", data).find(reader)
    assert found.batch.name == "fast"


def test_single_results_may_be_taken_as_they_come(station: Station) -> None:
    """Who takes results one by one loses nothing: results.jsonl and the summary have them all."""
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
    (line,) = station.logged("outbox_trouble", "early")
    assert "taken away before its summary" in line["message"]


def _bounded(station: Station) -> None:
    """Trouble of some seconds is logged a few times, not for each file and try."""
    assert 1 <= len(station.logged("outbox_trouble")) <= 12, station.text()


def test_an_outbox_that_is_replaced_by_a_file_comes_back(tmp_path: Path, model_server: str) -> None:
    """Nothing is lost, no task is started in vain,
    and all of it is written once the folder is there again.
    """
    with Station(tmp_path, model_server, model="steps-2").serving() as station:
        station.drop("before.json", _tasks(1))
        station.completed("before")
        station.outbox.rename(tmp_path / "away")
        station.outbox.write_bytes(b"")
        for i in range(30):
            station.drop(f"b{i}.json", _tasks(2))
        station.drop("wrong.json", b"[]")
        until(lambda: station.logged("outbox_trouble"), station.text)
        until(station.rests, station.text)
        asked_meanwhile = len(station.asked())
        time.sleep(0.3)
        assert len(station.asked()) == asked_meanwhile
        station.outbox.unlink()
        (tmp_path / "away").rename(station.outbox)
        for i in range(30):
            station.completed(f"b{i}", 2)
        station.refused("wrong")
        _bounded(station)
        assert station.logged("outbox_trouble", "works again")


def test_an_outbox_on_a_disk_that_becomes_read_only(tmp_path: Path, model_server: str) -> None:
    """And later is none any more: tasks wait for it, and complete."""
    with (
        mounted(tmp_path / "outbox"),
        Station(tmp_path, model_server, model="steps-2").serving() as station,
    ):
        station.drop("before.json", _tasks(1))
        station.completed("before")
        remount = ["mount", "-o", "remount", str(station.outbox)]
        subprocess.run([*remount, "-o", "ro"], check=True)
        station.drop("during.json", _tasks(12))
        until(lambda: station.logged("outbox_trouble", "Read-only"), station.text)
        time.sleep(2)
        subprocess.run([*remount, "-o", "rw"], check=True)
        station.completed("during", 12)
        _bounded(station)


def test_an_outbox_that_is_unmounted_gets_nothing_until_it_is_back(
    tmp_path: Path, model_server: str
) -> None:
    """Nothing is written below its place, no call is paid, a restart takes it for no new one, and
    what waits completes once its disk is there again.
    """
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    with mounted(tmp_path / "disk"), Station(tmp_path, model_server).serving() as station:
        until((tmp_path / ".batchd/outboxes").exists, station.text)
        subprocess.run(["mount", "--bind", str(tmp_path / "disk"), str(outbox)], check=True)
        try:
            station.drop("before.json", _tasks(1))
            until(lambda: station.logged("outbox_trouble", "is missing there"), station.text)
            assert station.process is not None
            # A reload, for a new key say, takes nothing else for the outbox.
            station.process.send_signal(signal.SIGHUP)
            until(lambda: station.logged("config_reloaded"), station.text)
            assert station.troubles() != []
            (outbox / ".batchd").touch()  # as the trouble's fix says
            station.completed("before")
            until(lambda: station.troubles() == [], station.text)
            asked = len(station.asked())
            subprocess.run(["umount", str(outbox)], check=True)
            (outbox / ".batchd").unlink()  # of before the mount: most places of a disk are empty
            station.drop("during.json", _tasks(2))
            until(lambda: station.troubles() != [], station.text)
            station.stop()
            station.start()
            until(lambda: station.troubles() != [], station.text)
            time.sleep(2)
            assert not [path for path in outbox.rglob("*") if path.name != "status.json"]
            assert len(station.asked()) == asked
            said = f"{outbox}: .batchd, by which batchd knows it, is missing there"
            (trouble,) = station.troubles()
            assert trouble["message"] == said
            assert trouble["mend"].startswith("mount its disk, or, to use what is there now: ")
            assert [(line["what"], line["detail"]) for line in _failed(station)] == [
                ("outbox", said)
            ]
            subprocess.run(["mount", "--bind", str(tmp_path / "disk"), str(outbox)], check=True)
            station.completed("during", 2)
            until(lambda: station.troubles() == [], station.text)
        finally:
            subprocess.run(["umount", "--lazy", str(outbox)], check=False)


def _failed(station: Station) -> list[dict[str, str]]:
    """Return what `check` finds wrong."""
    command = [*station.command()[:-1], "check", "--offline", "--json"]
    lines: list[dict[str, str]] = json.loads(warm.run(command, env=station.environment).stdout)
    return [line for line in lines if line["verdict"] == "failed"]


def test_an_outbox_that_was_deleted_is_made_again_by_the_line_that_status_shows(
    tmp_path: Path, model_server: str
) -> None:
    """It may be a disk that is gone, so nobody but its owner makes it."""
    with Station(tmp_path, model_server).serving() as station:
        station.drop("before.json", _tasks(1))
        station.completed("before")
        shutil.rmtree(station.outbox)
        station.drop("during.json", _tasks(2))
        until(lambda: station.troubles() != [], station.text)
        (trouble,) = station.troubles()
        fix = trouble["mend"].partition("what is there now: ")[2]
        subprocess.run(["bash", "-c", fix], check=True)
        station.completed("during", 2)
        until(lambda: station.troubles() == [], station.text)


def test_an_outbox_that_batchd_may_not_write_is_said_once(
    tmp_path: Path, model_server: str
) -> None:
    """`check` finds what the daemon has met, and says it in its words, with the fix."""
    chattr = shutil.which("chattr") or "chattr"
    with Station(tmp_path, model_server).serving() as station:
        station.outbox.mkdir(exist_ok=True)
        outbox = str(station.outbox)
        if subprocess.run([chattr, "+i", outbox], check=False, capture_output=True).returncode:
            pytest.skip("needs a file system with immutable files, and root")
        try:
            station.drop("kept_out.json", _tasks(1))
            until(lambda: station.logged("outbox_trouble", "not permitted"), station.text)
            command = [*station.command()[:-1], "check", "--offline", "--json"]
            lines = json.loads(warm.run(command, env=station.environment).stdout)
        finally:
            subprocess.run([chattr, "-i", outbox], check=True)
        (said,) = [line for line in lines if line["what"].startswith("outbox")]
        assert said["detail"] == f"{outbox} cannot be written"
        assert said["mend"] == "let the user that batchd runs as write there"
        station.completed("kept_out")


def test_a_full_outbox_starts_nothing_and_costs_nothing(tmp_path: Path) -> None:
    """What runs as the disk fills up ends; no other task is begun,
    no call is paid, until there is room again.
    """
    with (
        mounted(tmp_path / "outbox"),
        model_process("--latency", "0.5") as (slow_server, model),
        Station(tmp_path, slow_server, model="steps-3").serving() as station,
    ):
        station.drop("before.json", _tasks(1))
        station.completed("before")
        station.drop("during.json", _tasks(40))  # half a minute of work, for two at a time
        until((station.outbox / "during/001.json").exists, station.text)
        filling = station.outbox / "filling"
        # To fill it takes as long as it takes: nothing ends meanwhile.
        model.send_signal(signal.SIGSTOP)
        filled(filling, 0)
        model.send_signal(signal.SIGCONT)
        until(lambda: station.logged("outbox_trouble", "No space left"), station.text)
        until(station.rests, station.text)
        seen = time.time()
        asked, begun = len(station.asked()), len(station.logged("task_started"))
        time.sleep(2)
        assert len(station.asked()) == asked
        assert len(station.logged("task_started")) == begun < 40
        assert "Traceback" not in station.text()
        (trouble,) = station.troubles()
        assert (trouble["what"], trouble["mend"]) == ("outbox_trouble", "make room on that disk")
        assert trouble["since"] < seen, "it lasts since it was found"
        shown = station.status()
        why = "results cannot be written, so tasks that would leave some there do not start. "
        assert why in shown
        assert "No space left on device" in shown
        assert "To go on: make room on that disk" in shown
        answer_after(slow_server, 0)
        filling.unlink()
        station.completed("during", 40)
        until(lambda: station.troubles() == [], station.text)
        _bounded(station)
        assert station.logged("outbox_trouble", "works again")


def test_a_disk_without_room_for_results_is_found_out_before_a_task_starts(
    tmp_path: Path, model_server: str
) -> None:
    """A few blocks are left, so that folders can still be made:
    the task waits all the same, and says why.
    """
    with (
        mounted(tmp_path / "outbox"),
        Station(tmp_path, model_server, model="steps-1").serving() as station,
    ):
        filled(station.outbox / "filling", 200_000)
        asked = len(station.asked())
        station.drop("narrow.json", _tasks(4))
        until(lambda: station.logged("outbox_trouble", "No space left"), station.text)
        time.sleep(2)
        assert len(station.asked()) == asked
        (station.outbox / "filling").unlink()
        station.completed("narrow", 4)


def test_a_disk_that_holds_few_more_files_starts_no_task(tmp_path: Path, model_server: str) -> None:
    """Five inodes are left, and room for megabytes: no call is made
    whose transcript could not be written, and the fix is to delete files.
    """
    with (
        mounted(tmp_path / "outbox", "size=16m,nr_inodes=100"),
        Station(tmp_path, model_server, model="steps-2").serving() as station,
    ):
        fillings = [station.outbox / f"filling-{i}" for i in range(93)]
        for filling in fillings:
            filling.touch()
        asked = len(station.asked())
        station.drop("crowded.json", _tasks(4))
        until(lambda: station.logged("outbox_trouble", "more files (inodes) fit"), station.text)
        time.sleep(2)
        assert len(station.asked()) == asked
        (trouble,) = station.troubles()
        assert trouble["mend"] == "delete files on that disk"
        for filling in fillings:
            filling.unlink()
        station.completed("crowded", 4)


def test_an_outbox_is_one_spool_s_alone(tmp_path: Path, model_server: str) -> None:
    """The second daemon says so, writes nothing there, and goes on once the outbox is its own."""
    one, two = [Station(tmp_path / name, model_server) for name in ("one", "two")]
    two.outbox = one.outbox
    config = two.folder / "config.toml"
    text = config.read_text().replace("[paths]", f'[paths]\noutbox = "{one.outbox}"')
    config.write_text(text)
    with one.serving():
        one.drop("mine.json", _tasks(1))
        one.completed("mine")
        with two.serving():
            assert one.process
            two.drop("theirs.json", _tasks(1))
            until(lambda: two.troubles() != [], two.text)
            (trouble,) = two.troubles()
            shown = " ".join(two.status().split())
            assert "its .batchd says that it is the outbox of another state directory" in shown
            assert [line["what"] for line in _failed(two)] == ["outbox"]
            time.sleep(6)  # the status for others is written every five seconds
            said = json.loads((one.outbox / "status.json").read_bytes())
            assert said["daemon"]["pid"] == one.process.pid
            assert {path.name for path in one.outbox.iterdir()} == {
                *(".batchd", "mine", "status.json")
            }
            one.stop()
            fix = trouble["mend"].partition("if nothing else writes there: ")[2]
            subprocess.run(["bash", "-c", fix], check=True)
            two.completed("theirs")
            until(lambda: two.troubles() == [], two.text)


def test_check_names_what_is_wrong_with_the_marks(tmp_path: Path, model_server: str) -> None:
    """A list of them that is damaged, which is not taken for an empty one: that would make what is
    at a mount point the outbox; and a folder of the mark's name.
    """
    station = Station(tmp_path, model_server)
    with station.serving():
        station.drop("b.json", _tasks(1))
        station.completed("b")
    known = tmp_path / ".batchd/outboxes"
    before = known.read_bytes()
    known.write_bytes(before[:-3])
    [line] = _failed(station)
    assert (
        line["detail"]
        == f"{known}: it is damaged: where the outbox is the right one, remove this file"
    )
    known.write_bytes(before)
    mark = station.outbox / ".batchd"
    mark.unlink()
    mark.mkdir()
    [line] = _failed(station)
    assert line["detail"] == f"{mark}: Is a directory"
