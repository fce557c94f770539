"""Trouble holds what it concerns: one batch's folder that batch,
one outbox what goes there; everything else goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import warm
from dropping import submit
from patience import PATIENCE_S
from repositories import give_away, needs_git, repository
from weather import TASK, Station, hanging, until

from batchd import config, control, silent_paths
from batchd.control import Cancel, Retry
from batchd.control.socket_server import Requester
from batchd.daemon import Daemon
from batchd.records import TaskStatus
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns


def _tasks(count: int) -> bytes:
    return json.dumps([{"first_prompt": f"task {i}"} for i in range(count)]).encode()


def _at_work(reader: StoreReader) -> bool:
    return any(task.status is TaskStatus.RUNNING for task in reader.running())


def _order(station: Station, *words: str) -> None:
    warm.run([*station.command()[:-1], *words], env=station.environment).check_returncode()


def test_a_folder_in_trouble_holds_its_own_batch_alone(tmp_path: Path, model_server: str) -> None:
    """A file stands in its place: the tasks of others run meanwhile,
    its own wait, unpaid, and complete afterwards.
    """
    with Station(tmp_path, model_server, model="steps-2").serving() as station:
        station.drop("blocked.json", _tasks(60))
        folder = station.outbox / "blocked"
        until((folder / "001.json").exists, station.text, within_s=PATIENCE_S)
        # What runs works in that folder: it is to be at rest.
        _order(station, "pause", "blocked")
        with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
            until(lambda: not _at_work(reader), station.text, within_s=PATIENCE_S)
        folder.rename(tmp_path / "away")
        folder.write_bytes(b"")
        _order(station, "resume", "blocked")
        until(lambda: station.logged("outbox_trouble"), station.text, within_s=PATIENCE_S)
        station.drop("free.json", _tasks(6))
        until((station.outbox / "free/summary.json").exists, station.text, within_s=PATIENCE_S)
        station.completed("free", 6)
        (trouble,) = station.troubles()
        assert (trouble["what"], trouble["batches"]) == ("outbox_trouble", ["blocked"])
        why = "results of blocked cannot be written, so none of its tasks starts"
        assert why in station.status()
        assert len(station.logged("task_started")) < 60
        folder.unlink()
        (tmp_path / "away").rename(folder)
        until((folder / "summary.json").exists, station.text, within_s=PATIENCE_S)
        station.completed("blocked", 60)
        assert len((folder / "results.jsonl").read_text().splitlines()) == 60
        assert station.troubles() == []


def test_a_wrong_outbox_is_healed_by_a_right_one(tmp_path: Path, model_server: str) -> None:
    """What was dropped between two reloads goes to the outbox of the second;
    what has another outbox goes on all the time.
    """
    station = Station(tmp_path, model_server, model="steps-2")
    config = tmp_path / "config.toml"
    right = config.read_text().replace("[paths]", f'[paths]\noutbox = "{station.outbox}"', 1)
    config.write_text(right)
    with station.serving():
        assert station.process
        station.drop("before.json", _tasks(40))
        until((station.outbox / "before/001.json").exists, station.text, within_s=PATIENCE_S)
        (tmp_path / "file").write_bytes(b"")
        config.write_text(right.replace(f"{station.outbox}", f"{tmp_path}/file/outbox"))
        station.process.send_signal(signal.SIGHUP)
        until(lambda: station.logged("config_reloaded"), station.text, within_s=PATIENCE_S)
        station.drop("between.json", _tasks(3))
        until(lambda: station.logged("outbox_trouble"), station.text, within_s=PATIENCE_S)
        until((station.outbox / "before/summary.json").exists, station.text, within_s=PATIENCE_S)
        station.completed("before", 40)
        config.write_text(right)
        station.process.send_signal(signal.SIGHUP)
        until((station.outbox / "between/summary.json").exists, station.text, within_s=PATIENCE_S)
        station.completed("between", 3)
        station.drop("after.json", _tasks(2))
        until((station.outbox / "after/summary.json").exists, station.text, within_s=PATIENCE_S)
        station.completed("after", 2)
        assert station.troubles() == []


def test_an_outbox_that_hangs_holds_up_nothing_but_what_goes_there(
    tmp_path: Path, model_server: str
) -> None:
    """A mount whose server is gone: the daemon answers,
    takes files of the inbox away, ends on a signal; then all completes.
    """
    station = Station(tmp_path, model_server, model="steps-2")
    station.cold = True
    with station.serving():
        station.drop("before.json", _tasks(40))
        until((station.outbox / "before/001.json").exists, station.text, within_s=PATIENCE_S)
        with hanging(station.outbox):
            for number in range(20):
                station.drop(f"during{number}.json", _tasks(1))
            until(lambda: not [*station.inbox.glob("*.json")], station.text, within_s=PATIENCE_S)
            until(
                lambda: station.logged("outbox_trouble", "does not answer"),
                station.text,
                within_s=PATIENCE_S,
            )
            status = control.request(station.folder / ".batchd", "status")
            assert [trouble["what"] for trouble in status["troubles"]] == ["outbox_trouble"]
            assert "the outbox does not answer" in station.status()
            station.drop("wrong.json", b"[]")
            until(lambda: not [*station.inbox.glob("*.json")], station.text, within_s=PATIENCE_S)
            station.stop()
        station.start()
        for name, count in [("before", 40), *((f"during{n}", 1) for n in range(20))]:
            until(
                (station.outbox / name / "summary.json").exists, station.text, within_s=PATIENCE_S
            )
            station.completed(name, count)
        station.refused("wrong")


def test_an_inbox_that_hangs_holds_up_nothing_but_what_is_dropped(
    tmp_path: Path, model_server: str
) -> None:
    """A mount whose server is gone: the daemon carries out orders, and its tasks go on;
    once the inbox is back, files are taken again.
    """
    with Station(tmp_path, model_server, model="steps-2").serving() as station:
        station.drop("before.json", _tasks(40))
        until((station.outbox / "before/001.json").exists, station.text, within_s=PATIENCE_S)
        state = tmp_path / ".batchd"
        with hanging(station.inbox):
            # Each watch has looked at the inbox meanwhile.
            time.sleep(3)
            for order in ("pause", "resume"):
                control.request(state, order, scope="all", name="")
            station.completed("before", 40)
        station.drop("after.json", _tasks(1))
        station.completed("after")


def test_a_daemon_whose_inbox_hangs_stops_when_it_is_asked_to(
    tmp_path: Path, model_server: str
) -> None:
    """SIGTERM drains, and what waits for the inbox is left to the end of the process."""
    with Station(tmp_path, model_server, model="steps-2").serving() as station:
        station.drop("before.json", _tasks(1))
        station.completed("before")
        with hanging(station.inbox):
            # Each watch has looked at the inbox meanwhile.
            time.sleep(3)
            station.stop()


#: By what `check` calls a folder, where it is in a spool.
_FOLDERS = {
    "inbox": "inbox",
    "outbox": "outbox",
    "state": ".batchd",
    "[workspace] root": "trees",
    "[workspace] allow": "more/trees",
}
_WORKSPACE = '[workspace]\nroot = "trees"\nallow = ["more/trees"]\n'


def _ended(station: Station, *words: str) -> subprocess.CompletedProcess[str]:
    """Return how a command has ended, which must not hang."""
    command = [*station.command()[:-1], *words]
    return subprocess.run(
        command,
        env=station.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def _checked(station: Station) -> list[dict[str, str]]:
    """Return what `batchd check` says, which must fail within a few seconds."""
    began = time.monotonic()
    done = _ended(station, "check", "--offline", "--json")
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 20, "a few seconds each for command and daemon"
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def _silent(station: Station, what: str) -> tuple[str, str, str, str]:
    """Return what `check` is to say of a folder that hangs."""
    said = f"{station.folder / _FOLDERS[what]} does not answer"
    return "failed", what, said, silent_paths.FIX


@pytest.mark.parametrize("what", _FOLDERS)
def test_a_check_names_a_folder_that_hangs(tmp_path: Path, model_server: str, what: str) -> None:
    """Without a daemon, it ends within seconds: that one does not answer, the others do."""
    station = Station(tmp_path, model_server, more=_WORKSPACE)
    for folder in _FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
    with hanging(tmp_path / _FOLDERS[what]):
        lines = [tuple(line.values())[:4] for line in _checked(station)]
    assert _silent(station, what) in lines
    assert [line[1] for line in lines if line[0] == "failed"] == [what]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", ["inbox", "outbox", "state"])
def test_commands_end_though_a_folder_hangs(tmp_path: Path, model_server: str, what: str) -> None:
    """A start, a run and an order need it: each says within seconds that it does not answer,
    and so does the overview where it matters.
    """
    station = Station(tmp_path, model_server)
    for name in ("inbox", "outbox", "state"):
        (tmp_path / _FOLDERS[name]).mkdir(mode=0o700)
    task = tmp_path / "task.json"
    task.write_bytes(TASK)
    with hanging(tmp_path / _FOLDERS[what]):
        orders = [["status"], ["serve"], ["run", str(task)], ["cancel", "x"]]
        with ThreadPoolExecutor() as threads:
            said, *refused = threads.map(lambda words: _ended(station, *words), orders)
    assert ("does not answer" in said.stdout + said.stderr) == (what != "outbox")
    for done in refused:
        assert done.returncode == 3, done.args
        assert f"{_silent(station, what)[2]}: {silent_paths.FIX}" in done.stderr


def test_a_reload_while_the_outbox_hangs_is_refused(tmp_path: Path, model_server: str) -> None:
    """The daemon says why, keeps what it has, and goes on answering."""
    with Station(tmp_path, model_server).serving() as station:
        station.drop("before.json")
        station.completed("before")
        with hanging(station.outbox):
            assert station.process
            station.process.send_signal(signal.SIGHUP)
            until(lambda: "outbox does not answer: " in station.text(), station.text)
            assert control.request(tmp_path / ".batchd", "status")
        station.drop("after.json")
        station.completed("after")


def test_a_daemon_checks_though_its_folders_hang(tmp_path: Path, model_server: str) -> None:
    """It names them, goes on answering, and asks again once they are back."""
    for folder in _FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
    station = Station(tmp_path, model_server, model="steps-2", more=_WORKSPACE)
    with station.serving(), contextlib.ExitStack() as hangs:
        (tmp_path / ".batchd").chmod(0o700)
        names = [name for name in _FOLDERS if name != "state"]
        for name in names:
            hangs.enter_context(hanging(tmp_path / _FOLDERS[name]))
        assert station.process
        threads = Path(f"/proc/{station.process.pid}/task")
        _checked(station)
        count = len([*threads.iterdir()])
        for _ in range(2):
            lines = [tuple(line.values())[:4] for line in _checked(station)]
            assert {_silent(station, name) for name in names} <= {*lines}
        assert len([*threads.iterdir()]) <= count, "each check leaves no thread more"
        hangs.close()
        command = [*station.command()[:-1], "check", "--offline"]
        until(
            lambda: warm.run(command, env=station.environment).returncode == 0,
            station.text,
            within_s=PATIENCE_S,
        )


def test_an_outbox_that_begins_to_hang_holds_up_no_store(tmp_path: Path) -> None:
    """It hangs from one moment to the next, while it counts as one that answers:
    the store writes for others all the same.
    """
    (tmp_path / "config.toml").write_text(
        '[agent]\nmodel = "p/m"\n[providers.p]\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    settings = config.load(tmp_path / "config.toml", {})

    async def scenario() -> None:
        async with Daemon(settings, work=False) as daemon:
            await submit(daemon, "before.json", _tasks(1))
            with hanging(tmp_path / "outbox"):
                waiting = [
                    asyncio.ensure_future(submit(daemon, f"during{n}.json", _tasks(1)))
                    for n in range(20)
                ]
                await asyncio.sleep(0.1)
                async with asyncio.timeout(PATIENCE_S):
                    await daemon.store.ready()
                assert not any(each.done() for each in waiting)
            async with asyncio.timeout(PATIENCE_S):
                batches = await asyncio.gather(*waiting)
            assert len({batch.name for batch in batches}) == 20

    asyncio.run(scenario())


def _in(*places: str | Path, key: str = "dir") -> bytes:
    return json.dumps([{"first_prompt": "x", key: str(place)} for place in places]).encode()


@contextlib.contextmanager
def _far_and_near(tmp_path: Path, model_server: str) -> Iterator[tuple[Station, Path]]:
    """Serve with a folder where tasks may work that is to hang, and two others; nothing starts."""
    far = tmp_path / "far"
    repository(far / "repo", {"a": "b"})
    for name in ("far/0", "far/1", "far/2", "far/3", "near", "trees/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "trees/link").symlink_to(far / "2")
    for folder in (far, tmp_path / "near", tmp_path / "trees"):
        give_away(folder)
    more = f'[workspace]\nroot = "{tmp_path}/trees"\nallow = ["{far}", "{tmp_path}/near"]\n'
    with Station(tmp_path, model_server, model="steps-2", more=more).serving() as station:
        station.drop("old.json", _in(far / "0"))
        station.completed("old")
        control.request(tmp_path / ".batchd", "pause", scope="all", name="")
        station.drop("in.json", _in(*(far / str(n) for n in range(4))))
        until((station.outbox / "in").exists, station.text)
        yield station, far


@needs_git
def test_tasks_in_a_folder_that_hangs_hold_up_nothing_else(
    tmp_path: Path, model_server: str
) -> None:
    """More of them than there are slots, and more files that name it than are read at a time: what
    lies elsewhere goes on, orders are answered, one line of `status` names it. Once it
    answers, all of it goes on by itself, and no attempt is counted.
    """
    with _far_and_near(tmp_path, model_server) as (station, far):
        with hanging(far):
            control.request(tmp_path / ".batchd", "resume", scope="all", name="")
            for n in range(3):
                station.drop(f"dir{n}.json", _in(far / "1"))
            station.drop("repo.json", _in(far / "repo", key="repo"))
            for n in range(2):
                station.drop(f"link{n}.json", _in("link"))
            station.drop("near.json", _in("x", tmp_path / "near", ""))
            station.drop("plain.json")
            station.completed("near", 3)
            station.completed("plain")
            until(station.troubles, station.text)
            (trouble,) = station.troubles()
            assert (trouble["what"], trouble["message"]) == (
                "place_trouble",
                f"{far} does not answer",
            )
            assert f"{far} does not answer" in station.status()
            refused = _ended(station, "retry", "old", "--yes")
            assert refused.returncode == 3
            assert f"{far} does not answer: {silent_paths.FIX}" in refused.stderr
            _order(station, "cancel", "in/003")
            assert station.rests()
        for name in ("dir0", "dir1", "dir2", "repo", "link0", "link1"):
            station.completed(name)
        counts = station.summary("in")["counts"]
        assert (counts["completed"], counts["cancelled"]) == (3, 1)
        attempts = [
            json.loads((station.outbox / f"in/00{n}.json").read_text())["attempts"]
            for n in (1, 2, 4)
        ]
        assert attempts == [1, 1, 1]
        assert station.troubles() == []


@needs_git
def test_a_file_that_hangs_goes_behind_a_hundred_others(tmp_path: Path, model_server: str) -> None:
    """Its `dir` answers nothing; files that are read apart as it is are taken up meanwhile."""

    def near() -> int:
        received = station.logged("batch_received")
        return sum(line["batch"].startswith("near") for line in received)

    with _far_and_near(tmp_path, model_server) as (station, far):
        with hanging(far):
            station.drop("hangs.json", _in(far / "1"))
            until(lambda: not (station.inbox / "hangs.json").exists(), station.text)
            for n in range(100):
                station.drop(f"near{n}.json", _in("x"))
            until(lambda: near() == 100, station.text)
            assert not (station.outbox / "hangs").exists()
        until((station.outbox / "hangs").exists, station.text)


def test_a_daemon_stops_and_starts_while_a_task_s_folder_hangs(
    tmp_path: Path, model_server: str
) -> None:
    """SIGTERM ends it; the next one begins all the same,
    and goes on with the tasks there once it answers.
    """
    with _far_and_near(tmp_path, model_server) as (station, far):
        with hanging(far):
            control.request(tmp_path / ".batchd", "resume", scope="all", name="")
            station.drop("dir.json", _in(far / "1"))
            until(lambda: station.logged("place_trouble"), station.text)
            station.stop()
            station.start()
            station.drop("near.json", _in("x"))
            station.completed("near")
        station.completed("in", 4)
        station.completed("dir")


def test_a_retry_in_a_folder_that_hangs_leaves_the_loop_its_turns(tmp_path: Path) -> None:
    """It is refused once the folder had its time to answer; others have their turn meanwhile."""
    far = tmp_path / "far"
    far.mkdir()
    give_away(far)
    (tmp_path / "config.toml").write_text(
        '[agent]\nmodel = "p/m"\n[providers.p]\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[workspace]\nroot = "{far}"\n'
    )

    async def scenario() -> int:
        async with Daemon(config.load(tmp_path / "config.toml", {}), work=False) as daemon:
            handlers, turns = daemon.commands, 0
            await submit(daemon, "old.json", _in(far))
            await handlers.carry_out(Cancel(target="old"), Requester(uid=0, pid=0))
            with hanging(far):
                retry = handlers.carry_out(Retry(target="old"), Requester(uid=0, pid=0))
                order = asyncio.ensure_future(retry)
                while not order.done():
                    await asyncio.sleep(0.05)
                    turns += 1
                with pytest.raises(silent_paths.SilentPathError, match="far does not answer"):
                    order.result()
            return turns

    assert asyncio.run(scenario()) > 20
