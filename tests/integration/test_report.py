"""Reports as a daemon leaves them, and what `batchd report` makes of the store."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from pages import details
from patience import PATIENCE_S
from serving import web
from stored import BEGUN, Night
from weather import Station, filled, mounted, until

from batchd import results
from batchd.log import escape
from batchd.store.queries import StoreReader
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

ROOT = Path(__file__).parents[2]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """A store with a small batch that has ended, and a configuration."""
    night = Night(tmp_path, 60)
    night.write()
    (tmp_path / "config.toml").write_text("")
    return night


@pytest.fixture
def spool(spool: Spool) -> Spool:
    """A spool whose batches are reported."""
    return spool.with_reports()


def _in(folder: Path) -> Spool:
    return Spool(folder)


def test_a_finished_batch_has_its_report(spool: Spool) -> None:
    """The daemon writes it before the summary; figures are the summary's;
    a refused file has none, and stands in the way of no other.
    """
    spool.write("mixed.json", [{"first_prompt": f"do {n}", "tags": ["x"]} for n in range(4)])
    with spool.serving():
        assert spool.batchd("submit", "--wait", "mixed.json").returncode == 0
        (spool.folder / "inbox" / "wrong.json").write_text("[]")
        spool.eventually((spool.folder / "outbox/wrong/summary.json").exists)
    folder = spool.folder / "outbox/mixed"
    content, tasks = details(folder / "report.html")
    summary = json.loads((folder / "summary.json").read_text())
    assert content["counts"]["completed"] == summary["counts"]["completed"] == 4
    assert content["total"]["usd"] == pytest.approx(summary["cost"]["total"])
    assert [m["name"] for m in content["elsewhere"]] != []
    # The report knows no moment of a call.
    fixed = {m["name"]: m["usd"] for m in content["elsewhere"] if not m["highest"]}
    assert fixed == {
        m["model"]: pytest.approx(m["total"])
        for m in summary["cost"]["compare"]
        if m["model"] in fixed
    }
    assert content["tasks"]["transcript"] == [f"00{n}.jsonl" for n in range(1, 5)]
    assert {t["prompt"] for t in tasks} == {f"do {n}" for n in range(4)}
    assert all(t["passages"][-1]["kind"] == "end" for t in tasks)
    assert (folder / "report.html").stat().st_mtime_ns <= (
        folder / "summary.json"
    ).stat().st_mtime_ns
    assert not (spool.folder / "outbox/wrong/report.html").exists()
    again = spool.batchd("report")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(f"{folder / 'report.html'}: 4 tasks")


def test_models_and_batches_stand_side_by_side(spool: Spool) -> None:
    """The report and the summary have the same figures of each model and tag; the same prompt on
    two models is a row of a grid, and so is the same task in two batches.
    """
    config, models = spool.folder / "config.toml", ("standin/steps-1", "standin/steps-2")
    price = "\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n"
    config.write_text(config.read_text() + f'[models."{models[0]}"]{price}')
    check = {"check": "exit 3", "limits": {"max_iterations": 1}}
    same = [
        {"first_prompt": f"do {n}", "model": m, "tags": [f"t{n}"]} for n in (1, 2) for m in models
    ]
    spool.write("mixed.json", [same[0], same[1] | check, *same[2:]])
    with spool.serving():
        spool.batchd("submit", "--wait", "mixed.json")
        spool.batchd("retry", "mixed", "--yes")
        spool.batchd("wait", "mixed-2")
    folder = spool.folder / "outbox/mixed"
    summary = json.loads((folder / "summary.json").read_text())
    content, _ = details(folder / "report.html")
    assert content["by_model"] == summary["by_model"]
    assert content["by_tag"] == summary["by_tag"]
    assert {g["name"]: g["success_rate"] for g in content["by_model"]} == {
        models[0]: 1.0,
        models[1]: 0.5,
    }
    # Where the models differ stands first.
    grid = content["grid"]
    assert (grid["by"], grid["columns"]) == ("model", [*models])
    assert grid["rows"] == [[[0], [1]], [[2], [3]]]
    assert spool.batchd("report", "mixed", "mixed-2", "-o", "both.html").returncode == 0
    content, _ = details(spool.folder / "both.html")
    assert [g["name"] for g in content["by_batch"]] == ["mixed", "mixed-2"]
    assert content["grid"]["columns"] == ["mixed", "mixed-2"]
    assert content["grid"]["rows"][0] == [[1], [5]]
    with web(spool) as page:
        given = page.get("/api/report/mixed")
    theirs = {"made_at", "notes", "folders", "tasks"}
    content, _ = details(folder / "report.html")
    assert {k: v for k, v in given.items() if k not in theirs} == {
        k: v for k, v in content.items() if k not in theirs
    }


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("[report]\ntimeout_s = 0.01\n", "it took longer than 0.01 s"),
        ("[report]\nenabled = false\n", ""),
    ],
)
def test_no_report_holds_a_batch_up(tmp_path: Path, model_server: str, more: str, why: str) -> None:
    """One that takes too long is given up, and the log says so;
    one that is not wanted is not made.
    """
    station = Station(tmp_path, model_server, reports=True, more=more)
    with station.serving():
        for name in ("a", "b"):
            station.drop(f"{name}.json", b'{"first_prompt": "x"}')
            station.completed(name, 1)
    assert list(station.outbox.glob("*/report.html")) == []
    lines = station.logged("report_trouble")
    assert [line["batch"] for line in lines] == (["a", "b"] if why else [])
    assert all(why in line["message"] for line in lines)


def test_what_cannot_be_written_is_logged(tmp_path: Path, model_server: str) -> None:
    """Something stands where the report is to lie:
    the summary comes all the same, and so does the next report.
    """
    station = Station(tmp_path, model_server, model="latency-0.5+steps-1", reports=True)
    with station.serving():
        station.drop("a.json", b'{"first_prompt": "x"}')
        until((station.outbox / "a" / "request.json").exists)
        (station.outbox / "a" / "report.html").mkdir()
        station.completed("a", 1)
        station.drop("b.json", b'{"first_prompt": "x"}')
        station.completed("b", 1)
    (line,) = station.logged("report_trouble")
    assert "report.html" in line["message"]
    assert (station.outbox / "b" / "report.html").is_file()
    assert list(station.outbox.glob("*/.*")) == []


def test_nothing_is_left_of_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """Who makes reports ends with the daemon, also while its input stays open."""
    started = (
        "import os, subprocess, time\n"
        "from batchd import processes\n"
        "command = processes.module('batchd.web.report', str(os.getpid()))\n"
        "child = subprocess.Popen(command)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", started],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_in(tmp_path).environment,
    ) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().decode().strip())
        until(lambda: b"batchd.web.report" in (child / "cmdline").read_bytes())
        parent.stdout.read(1)  # it is ready
        parent.kill()
        parent.wait()
        until(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have process numbers of its own")
def test_the_first_process_of_a_container_makes_reports(spool: Spool) -> None:
    """Where batchd is process 1, who makes reports does not take it for what adopts orphans."""
    spool.write("one.json", [{"first_prompt": "x"}])
    run = spool.command("run", "one.json")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *run],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=spool.environment,
        cwd=spool.folder,
    )
    assert done.returncode == 0, done.stderr
    assert (spool.folder / "outbox/one/report.html").is_file()


def test_small_reports_pass_large_ones(tmp_path: Path, model_server: str) -> None:
    """While a large one is made, or hangs, small ones do not wait for it: their summaries come."""
    large = json.dumps([{"first_prompt": f"do {n}"} for n in range(21)]).encode()
    station = Station(tmp_path, model_server, reports=True)
    with station.serving():
        station.drop("first.json", large)
        station.completed("first", 21)
        [behind] = [pid for pid in _makers() if _of(pid, station)]
        os.kill(int(behind), signal.SIGSTOP)
        station.drop("large.json", large)
        until(lambda: len([*station.outbox.glob("large/*.json")]) == 22, station.text)
        station.drop("small.json", b'{"first_prompt": "x"}')
        station.completed("small", 1)
        assert (station.outbox / "small/report.html").exists()
        assert not (station.outbox / "large/summary.json").exists()
        os.kill(int(behind), signal.SIGCONT)
        station.completed("large", 21)
        assert (station.outbox / "large/report.html").exists()
    assert station.logged("report_trouble") == []


def test_secrets_of_tasks_are_in_no_report(spool: Spool) -> None:
    """A command prints its secret; neither page nor transcripts nor the table have it."""
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace("steps-2", "notes-2"))
    secret = "hunter2-hunter2"
    task = {
        "first_prompt": "do it",
        "check": 'echo "$TOKEN"; exit 1',
        "limits": {"max_iterations": 2},
    }
    spool.write("hush.json", [{**task, "env": {"TOKEN": {"secret": secret}}}])
    with spool.serving():
        spool.batchd("submit", "--wait", "hush.json")
    page = spool.folder / "outbox/hush/report.html"
    content, tasks = details(page)
    everything = page.read_text() + json.dumps([content, tasks])
    assert "[secret]" in everything
    assert secret not in everything
    assert secret not in spool.batchd("report", "--csv", "hush").stdout


def test_over_days_and_several_batches(night: Night) -> None:
    """Batches are chosen by name or by days;
    the page says whose tasks they are, and links into their folders.
    """
    Night(night.folder, 20, name="second").write()
    spool = _in(night.folder)
    day = time.strftime("%Y-%m-%d", time.gmtime(BEGUN))
    done = spool.batchd("report", "--since", day, "--until", day, "-o", "both.html")
    assert done.stdout.startswith("both.html: 80 tasks of 2 batches")
    content, _ = details(night.folder / "both.html")
    assert [(f["name"], f["link"]) for f in content["folders"]] == [
        ("night", "outbox/night/"),
        ("second", "outbox/second/"),
    ]
    assert len(content["tasks"]["id"]) == 80
    assert content["orders"] == [f"batchd retry {name} --failed" for name in ("night", "second")]

    for arguments in (
        ["--since", "2027-01-01"],
        ["--until", "2020-01-01"],
        ["night", "--since", "2027-01-01"],
    ):
        refused = spool.batchd("report", *arguments)
        assert (refused.returncode, refused.stderr) == (
            2,
            "batchd: there is no batch to report on in that time\n",
        )
    assert "is not a day" in spool.batchd("report", "--since", "tomorrow").stderr
    assert "there is no batch nowhere" in spool.batchd("report", "nowhere").stderr


def test_what_was_pruned_is_said(night: Night) -> None:
    """With results.jsonl in the outbox prompts and answers are there;
    without it, figures are, and a note.
    """
    spool = _in(night.folder)
    before = spool.batchd("report", "--csv", "-o", "-").stdout
    with StoreReader(night.path) as reader:
        lines = [results.line(text) for _, text in reader.results(night.name)]
    (night.outbox / "results.jsonl").write_text("".join(lines))
    (night.outbox / "summary.json").write_text("{}")
    assert spool.batchd("prune", "--yes").returncode == 0
    assert spool.batchd("report").returncode == 0
    content, tasks = details(night.outbox / "report.html")
    assert "was pruned: its results are from results.jsonl" in content["notes"][0]
    assert all(t["passages"] is None for t in tasks)
    assert any("guessing game" in t["prompt"] for t in tasks)
    assert spool.batchd("report", "--csv").stdout == before

    (night.outbox / "results.jsonl").unlink()
    assert spool.batchd("report").returncode == 0
    content, _ = details(night.outbox / "report.html")
    assert "prompts, answers and transcripts are missing" in content["notes"][0]
    assert content["counts"]["completed"] > 40
    assert content["total"]["usd"] > 0
    assert len(content["bars"]) == sum(at is not None for at in content["tasks"]["started_at"])


def test_csv(tmp_path: Path) -> None:
    """Whatever texts hold, it reads back as one row a task;
    no cell is a formula, or steers a terminal; columns are as documented.
    """
    evil = (
        '=HYPERLINK("http://x"),"a"',
        "+1+1",
        "-2\n\r\n",
        '@SUM(A1)"',
        "\t=1",
        "plain, with comma",
        "plain bar drawn\ranew\r=1+1",
        "\n=1+1",
        " \r\n\t+1",
        "\uff1d1+1",
        "\uff0b1",
        "\uff0d1",
        "\uff20SUM(A1)",
        "\u200b\ufe661",
        "plain \x1b]0;title\x07\x1b[2J\u202e\x9b31m\tand tabs\r\nand lines",
    )
    night = Night(tmp_path, 20, hostile=evil)
    night.write()
    (tmp_path / "config.toml").write_text("")
    assert _in(tmp_path).batchd("report", "--csv", "-o", "out.csv").returncode == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    for row, text in zip(rows, evil, strict=False):
        shown = "".join(c if c in "\n\t" else escape(c) for c in text.replace("\r\n", "\n"))
        assert row["first_prompt"] == (shown if text.startswith("plain") else f"'{shown}")
    formulas = re.compile(r"[\s\u200b]*[=+@\uff1d\uff0b\uff0d\uff20\ufe66-]")
    assert not [c for r in rows for c in r.values() if formulas.match(c) and c[0] != "'"]
    page = (ROOT / "docs/tasks.md").read_text()
    assert " ".join(rows[0]) in " ".join(page.split()).replace("`", "").replace(",", "")


def test_a_disk_without_room_for_a_report_is_named(tmp_path: Path, model_server: str) -> None:
    """Tasks run and complete there: the log has the room there is,
    the room that is needed, and the fix.
    """
    with (
        mounted(tmp_path / "outbox", "size=32m"),
        Station(tmp_path, model_server, reports=True).serving() as station,
    ):
        filled(station.outbox / "filling", 8 << 20)
        station.drop("narrow.json", b'{"first_prompt": "x"}')
        station.completed("narrow", 1)
        (line,) = station.logged("report_trouble")
        assert f"{station.outbox}/narrow: No space left on device: 8." in line["message"]
        assert re.search(r" MB free on its disk, 1[67]\.\d MB needed; make room", line["message"])


def test_what_is_no_file_is_not_replaced(night: Night) -> None:
    """A page for a device goes into it, and a backup is refused:
    nothing takes a device's place, be it asked for by root.
    """
    spool, link = _in(night.folder), night.folder / "out"
    link.symlink_to("/dev/full")
    page = spool.batchd("report", "-o", "out")
    assert page.returncode == 3
    assert "No space left" in page.stderr
    copy = spool.batchd("backup", "out")
    assert (copy.returncode, "is not a file" in copy.stderr) == (2, True)
    assert link.is_symlink()


def test_counts_and_days_may_be_as_large_as_they_can_be_written(night: Night) -> None:
    """The last day of the calendar and more batches than there can be mean all of them."""
    spool = _in(night.folder)
    assert spool.batchd("report", "--until", "9999-12-31", "-o", "r.html").returncode == 0
    assert night.name in spool.batchd("status", "-n", str(10**30)).stdout


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    """What is installed can make reports: the page's sources are in it."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {str(p.relative_to(ROOT)) for p in ROOT.glob("batchd/*/assets/*")}
    with zipfile.ZipFile(wheel) as file:
        assert names <= set(file.namelist())


def test_many_batches_share_two_processes(tmp_path: Path, model_server: str) -> None:
    """Small batches that end one after another do not start a process each,
    but two at most, which go with the daemon.
    """
    station = Station(tmp_path, model_server, reports=True)
    with station.serving():
        for n in range(12):
            station.drop(f"b{n}.json", b'{"first_prompt": "x"}')
        makers: set[str] = set()

        def done() -> bool:
            makers.update(_makers())
            return len([*station.outbox.glob("*/summary.json")]) == 12

        until(done)
        mine = {pid for pid in makers if _of(pid, station)}
    assert len([*station.outbox.glob("*/report.html")]) == 12
    assert len(mine) <= 2
    until(lambda: not {pid for pid in mine if Path("/proc", pid).exists()})


def _makers() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"batchd.web.report" in (entry / "cmdline").read_bytes():
                found.add(entry.name)
        except OSError:
            continue
    return found


def _of(pid: str, station: Station) -> bool:
    try:
        parent = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return False
    return station.process is not None and parent == str(station.process.pid)
