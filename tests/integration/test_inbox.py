"""Real folders, real inotify: every way in which a file gets into the inbox, and out of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from patience import PATIENCE_S, until
from weather import mounted

from batchd import config
from batchd.cli import refusals
from batchd.config import Config
from batchd.spool import claims, files, folder_watch, inbox, ulid
from batchd.spool.claims import Claim, lying
from batchd.spool.inbox import Inbox

pytestmark = pytest.mark.in_turns

TASK = b'{"first_prompt": "x"}'


def _spool(folder: Path, **spool: object) -> Config:
    keys = {"settle_s": 0.15, "scan_s": 60.0, **spool}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    (folder / "config.toml").write_text("\n".join(["[spool]", *lines]))
    (folder / ".batchd").mkdir(exist_ok=True)
    return config.load(folder / "config.toml", {})


class Claims:
    """What an inbox has handed out so far."""

    def __init__(self) -> None:
        self.all: list[Claim] = []
        self._more = asyncio.Event()

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return [claim.name for claim in self.all]

    async def collect(self, box: Inbox) -> None:
        """Take everything from the inbox."""
        async for claim in box.claims():
            self.all.append(claim)
            self._more.set()

    async def until(self, count: int, within_s: float = PATIENCE_S) -> None:
        """Wait for so many claims."""
        async with asyncio.timeout(within_s):
            while len(self.all) < count:
                self._more.clear()
                await self._more.wait()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.asynccontextmanager
async def _watching(settings: Config) -> AsyncIterator[tuple[Inbox, Claims]]:
    box, claims = Inbox(settings), Claims()
    await box.start()
    task = asyncio.create_task(claims.collect(box))
    # Its first scan is behind it once it has found this.
    inbox.drop(box.folder, "mark.json", TASK)
    while "mark.json" not in claims.names:
        await claims.until(len(claims.all) + 1)
    claims.all.pop(claims.names.index("mark.json")).path.unlink()
    try:
        yield box, claims
    finally:
        await box.stop()
        await task


def test_whole_files_are_taken_at_once(tmp_path: Path) -> None:
    """What was moved in, and JSON that is complete when it is closed, need not settle."""

    async def play() -> None:
        async with _watching(_spool(tmp_path, settle_s=3600.0)) as (box, claims):
            (tmp_path / "outside.md").write_bytes(b"prompt")
            (tmp_path / "outside.md").rename(box.folder / "moved.md")
            (box.folder / "closed.json").write_bytes(TASK)
            (box.folder / "cut.json").write_bytes(TASK[:-1])
            (box.folder / ".renamed").write_bytes(b"prompt")
            (box.folder / ".renamed").rename(box.folder / "renamed.txt")
            await claims.until(3)
            assert sorted(claims.names) == ["closed.json", "moved.md", "renamed.txt"]
            assert _names(box.folder) == {"cut.json"}
            for claim in claims.all:
                assert claim.path == tmp_path / ".batchd/claimed" / f"{claim.ulid}-{claim.name}"
                assert claim.path.read_bytes() in {b"prompt", TASK}
                assert abs(claim.received_at - time.time()) < 600

    asyncio.run(play())


def test_other_files_are_taken_when_they_held_still(tmp_path: Path) -> None:
    """A closed text, broken JSON and a hard link show no end:
    they are taken after settle_s, without a scan.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path)) as (box, claims):
            began = time.monotonic()
            (box.folder / "closed.md").write_bytes(b"prompt")
            (box.folder / "cut.json").write_bytes(TASK[:-1])
            (tmp_path / "outside.txt").write_bytes(b"prompt")
            (box.folder / "linked.txt").hardlink_to(tmp_path / "outside.txt")
            await claims.until(3)
            assert time.monotonic() - began > 0.15
            assert sorted(claims.names) == ["closed.md", "cut.json", "linked.txt"]

    asyncio.run(play())


def test_a_file_written_slowly_is_left_until_it_is_closed(tmp_path: Path) -> None:
    """A writer that rests for longer than settle_s keeps its file,
    also one that opens it again and again.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.1, settle_s=1.0)) as (box, claims):
            path = box.folder / "slow.md"
            with path.open("wb") as file:
                for part in (b"a", b"b"):
                    file.write(part)
                    file.flush()
                    await asyncio.sleep(1.2)  # longer than settle_s: what is tested is this rest
                assert claims.all == []
            for part in (b"d", b"e", b"f"):
                with path.open("ab") as file:
                    file.write(part)
                await asyncio.sleep(0.05)
            await claims.until(1)
            assert claims.all[0].path.read_bytes() == b"abdef"

    asyncio.run(play())


def test_a_file_that_is_begun_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """A whole file is moved in and away again, and one of its name begun, before anything is looked
    at: the second is left until its writer is done.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path, settle_s=1.0)) as (box, claims):
            path = box.folder / "same.md"
            away = None
            while away is None:
                (tmp_path / "first").write_bytes(b"first")
                (tmp_path / "first").rename(path)
                try:
                    away = path.rename(tmp_path / "first")
                except FileNotFoundError:  # it was whole, and is taken already: once more
                    await claims.until(1)
                    claims.all.clear()
            with path.open("wb") as file:
                file.write(b"sec")
                file.flush()
                await asyncio.sleep(0.5)
                assert claims.all == []
                file.write(b"ond")
            await claims.until(1)
            assert claims.all[0].path.read_bytes() == b"second"

    asyncio.run(play())


def test_a_file_that_is_moved_in_while_it_is_written_is_left_until_it_is_closed(
    tmp_path: Path,
) -> None:
    """A move shows a whole file only where its writer is done."""

    async def play() -> None:
        async with _watching(_spool(tmp_path)) as (box, claims):
            with (tmp_path / "early.md").open("wb") as file:
                file.write(b"fir")
                file.flush()
                (tmp_path / "early.md").rename(box.folder / "early.md")
                (tmp_path / "later.md").write_bytes(b"later")
                (tmp_path / "later.md").rename(box.folder / "later.md")
                await claims.until(1)
                assert claims.names == ["later.md"]
                file.write(b"st")
            await claims.until(2)
            assert claims.all[1].path.read_bytes() == b"first"

    asyncio.run(play())


def test_what_is_not_for_us_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Unfinished names, symbolic links, FIFOs, sockets and folders stay where they are;
    links are reported.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.1)) as (box, claims):
            (tmp_path / "target.json").write_bytes(TASK)
            left = [".hidden.json", "a.json~", "a.tmp", "a.json.part", ".a.json.swp"]
            for name in left:
                (tmp_path / "new").write_bytes(TASK)
                (tmp_path / "new").rename(box.folder / name)
            (box.folder / "link.json").symlink_to(tmp_path / "target.json")
            os.mkfifo(box.folder / "fifo.json")
            (box.folder / "folder.json").mkdir()
            await asyncio.sleep(0.5)  # several scans: what is tested is that nothing happens
            (tmp_path / "target.json").rename(box.folder / "good.json")
            await claims.until(1)
            assert claims.names == ["good.json"]
            left += ["link.json", "fifo.json", "folder.json"]
            assert _names(box.folder) == set(left)

    asyncio.run(play())
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("link.json is a symbolic link and is left alone") == 1


def test_odd_names(tmp_path: Path) -> None:
    """Names with newlines, bytes that are not UTF-8,
    and of 255 bytes are claimed and shown as they are.
    """
    names = [
        b"a\nb.json",
        b"\xff\xfe.json",
        b"-rf.json",
        b"x" * 250 + b".json",
        "任务.json".encode(),
    ]

    async def play() -> None:
        async with _watching(_spool(tmp_path)) as (box, claims):
            for name in names:
                (tmp_path / "new").write_bytes(TASK)
                (tmp_path / "new").rename(box.folder / os.fsdecode(name))
            await claims.until(len(names))
            assert {os.fsencode(n) for n in claims.names} == set(names)
            again, others = lying(box.folder, tmp_path / ".batchd")
            assert others == []
            assert [c.ulid for c in again] == sorted(c.ulid for c in claims.all)
            assert all(c.path.read_bytes() == TASK for c in again)
            assert all(c.name.endswith(".json") for c in again)

    asyncio.run(play())


def test_a_burst_is_claimed_whole_in_order_and_once(tmp_path: Path) -> None:
    """2,000 files at once, more than there is room for hints, are each claimed exactly once."""

    async def play() -> None:
        async with _watching(_spool(tmp_path)) as (box, claims):

            def drop() -> None:
                for number in range(2000):
                    (box.folder / f"{number}.json").write_bytes(TASK)

            await asyncio.to_thread(drop)
            await claims.until(2000, within_s=PATIENCE_S)
            assert len(set(claims.names)) == 2000
            assert len({c.ulid for c in claims.all}) == 2000

    asyncio.run(play())


def test_lost_events_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hints are dropped, as when the kernel's queue runs over,
    a scan finds the rest at once.
    """
    monkeypatch.setattr(folder_watch, "_MAX_HINTS", 10)

    async def play() -> None:
        async with _watching(_spool(tmp_path)) as (box, claims):

            def drop() -> None:
                for number in range(1200):
                    (tmp_path / "new").write_bytes(TASK)
                    (tmp_path / "new").rename(box.folder / f"{number}.json")

            await asyncio.to_thread(drop)
            await claims.until(1200, within_s=PATIENCE_S)
            assert len(set(claims.names)) == 1200

    asyncio.run(play())


def test_the_oldest_come_first_and_no_more_than_needed(tmp_path: Path) -> None:
    """What lies there at the start is claimed by age, a chunk ahead of what takes it."""

    async def play() -> None:
        settings = _spool(tmp_path, settle_s=0.0)
        box = Inbox(settings)
        await box.start()
        for number in range(600):
            path = box.folder / f"{number}.md"
            path.write_bytes(b"x")
            os.utime(path, ns=(0, (1000 - number) * 10**9))
        await box.stop()
        box = Inbox(settings)
        await box.start()
        claims = box.claims()
        first = [await anext(claims) for _ in range(3)]
        assert [c.name for c in first] == ["599.md", "598.md", "597.md"]
        assert len(box.claimed()) == inbox.CHUNK
        rest = [await anext(claims) for _ in range(597)]
        assert rest[-1].name == "0.md"
        await box.stop()

    asyncio.run(play())


_CLAIMER = """
import asyncio, sys
from pathlib import Path
from batchd import config
from batchd.spool.inbox import Inbox
async def main():
    box = Inbox(config.load(Path(sys.argv[1]), {}))
    await box.start()
    print("ready", flush=True)
    async for claim in box.claims():
        print("claimed", claim.name, flush=True)
asyncio.run(main())
"""


def test_two_claimers_share_an_inbox(tmp_path: Path) -> None:
    """Two processes with states of their own, on one inbox:
    each of 1,000 files goes to exactly one of them.
    """
    _spool(tmp_path, scan_s=0.1)
    shared = (tmp_path / "config.toml").read_text()
    commands = []
    for n in (1, 2):
        (tmp_path / f"config{n}.toml").write_text(f'{shared}\n[paths]\nstate = "state{n}"\n')
        (tmp_path / f"state{n}").mkdir()
        commands.append([sys.executable, "-c", _CLAIMER, str(tmp_path / f"config{n}.toml")])
    outputs = [(tmp_path / f"out{n}").open("w+") for n in (1, 2)]
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(output)
        claimers = [
            subprocess.Popen(command, stdout=output, cwd=Path(__file__).parents[2])
            for command, output in zip(commands, outputs, strict=True)
        ]
        for claimer in claimers:
            stack.callback(claimer.wait)
            stack.callback(claimer.kill)

        def said() -> list[str]:
            return [(tmp_path / f"out{n}").read_text() for n in (1, 2)]

        def claimed() -> list[str]:
            # Between these lines may be one of the log: that there are claims of somebody else.
            return re.findall("(?m)^claimed (.*)$", "".join(said()))

        _wait_for(lambda: all(text.startswith("ready\n") for text in said()))
        for number in range(1000):
            (tmp_path / "new").write_bytes(TASK)
            (tmp_path / "new").rename(tmp_path / f"inbox/{number}.json")
        _wait_for(lambda: len(claimed()) >= 1000)
        _wait_for(lambda: _names(tmp_path / "inbox") == set())
        assert sorted(claimed()) == sorted(f"{n}.json" for n in range(1000))


def _wait_for(done: Callable[[], bool]) -> None:
    until(done)


def test_claims_of_an_earlier_run_come_again(tmp_path: Path) -> None:
    """What a killed daemon had claimed is handed out first,
    under the same ULID; other files there are not.
    """

    async def play() -> None:
        settings = _spool(tmp_path)
        async with _watching(settings) as (box, claims):
            for name in ("a.json", "b-c.json"):
                inbox.drop(box.folder, name, TASK)
            await claims.until(2)
            (tmp_path / ".batchd/claimed/stray").write_bytes(b"")
        again = Inbox(settings)
        assert again.claimed() == {c.ulid for c in claims.all}
        await again.start()
        stream = again.claims()
        assert [await anext(stream), await anext(stream)] == claims.all
        await again.stop()

    asyncio.run(play())


def _identity(folder: Path) -> tuple[int, int]:
    return folder.stat().st_dev, folder.stat().st_ino


@pytest.mark.parametrize("harm", ["removed", "renamed", "emptied"])
def test_an_inbox_that_is_removed_is_made_again(tmp_path: Path, harm: str) -> None:
    """Removed, renamed, or without a folder for claims:
    all of it is made and watched again, and goes on.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.1)) as (box, claims):
            old = box.folder.stat().st_ino
            if harm == "removed":
                shutil.rmtree(box.folder)
            elif harm == "renamed":
                box.folder.rename(tmp_path / "old")
            else:
                shutil.rmtree(tmp_path / ".batchd/claimed")
            await asyncio.to_thread(_wait_for, box.folder.exists)
            await asyncio.to_thread(_wait_for, (tmp_path / ".batchd/claimed").exists)
            if harm == "renamed":
                assert box.folder.stat().st_ino != old
            inbox.drop(box.folder, "new.json", TASK)
            await claims.until(1)
            await asyncio.to_thread(_wait_for, lambda: box._hints.watched == _identity(box.folder))
            # The new folder's events count: a scan alone would take a minute now.
            box._scan_s, box._next_scan = 60.0, time.monotonic() + 60
            await asyncio.sleep(0.15)  # lets a wait that began with the old scan_s run out
            inbox.drop(box.folder, "newer.json", TASK)
            await claims.until(2)

    asyncio.run(play())


def test_a_state_directory_that_was_moved_away_is_not_made_again(tmp_path: Path) -> None:
    """Nothing stands in its place, nothing is claimed meanwhile,
    and all goes on once it is back.
    """

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.1)) as (box, claims):
            state, away = tmp_path / ".batchd", tmp_path / "away"
            state.rename(away)
            inbox.drop(box.folder, "new.json", TASK)
            await asyncio.to_thread(_wait_for, lambda: box.trouble is not None)
            assert not state.exists()
            assert (box.folder / "new.json").exists()
            away.rename(state)
            await claims.until(1)

    asyncio.run(play())


def test_polling_needs_no_events(tmp_path: Path) -> None:
    """With watch = "poll", two looks at a file that holds still are enough; a growing one waits."""

    async def play() -> None:
        async with _watching(_spool(tmp_path, watch="poll", scan_s=0.05, settle_s=1.0)) as (
            box,
            claims,
        ):
            assert box._hints.watched is None
            path = box.folder / "a.md"
            for _ in range(5):
                with path.open("ab") as file:
                    file.write(b"x")
                await asyncio.sleep(0.08)
            assert claims.all == []
            await claims.until(1)
            assert claims.all[0].path.read_bytes() == b"xxxxx"

    asyncio.run(play())


def test_a_file_that_takes_anothers_place_settles_again(tmp_path: Path) -> None:
    """Between settling and claim a name may come to stand for another file:
    that one is not taken.
    """

    async def play() -> None:
        box = Inbox(_spool(tmp_path))
        await box.start()
        path = box.folder / "a.md"
        path.write_bytes(b"old")
        look = inbox.signature(path.lstat())
        path.unlink()
        path.write_bytes(b"new, and")
        box._settled.append(("a.md", look))
        assert box._claim() == []
        assert path.exists()
        await box.stop()

    asyncio.run(play())


def test_a_disk_that_fails_for_a_while_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the folder cannot be worked on, that is reported once and tried again;
    no file is lost.
    """

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.05)) as (box, claims):
            with monkeypatch.context() as broken:
                broken.setattr(files, "make_folder", fail)
                await asyncio.sleep(0.3)  # several scans
            inbox.drop(box.folder, "a.json", TASK)
            await claims.until(1)

    asyncio.run(play())
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("the inbox cannot be worked on") == 1


def test_an_inbox_that_cannot_be_made(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the start fails, and says so."""
    settings = _spool(tmp_path)
    (tmp_path / "inbox").write_bytes(b"")
    with pytest.raises(OSError, match="inbox"):
        asyncio.run(Inbox(settings).start())


def test_drop_never_replaces(tmp_path: Path) -> None:
    """A name that is taken gets a number; no name escapes the inbox;
    the file is whole when it is seen.
    """
    box = tmp_path / "inbox"
    assert [inbox.drop(box, "a.json", TASK).name for _ in range(3)] == [
        *("a.json", "a-2.json", "a-3.json")
    ]
    assert inbox.drop(box, "../../.hidden/\0x.json", TASK).parent == box
    assert not any(p.name.startswith(".") for p in box.iterdir())


def test_ulids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 characters, each greater than the one before,
    also within a millisecond and with the clock set back a little.

    Set back by more, they show the new time:
    what comes in must not be dated into the future for ever.
    """
    made = [ulid.ulid() for _ in range(5000)]
    assert all(ulid.PATTERN.fullmatch(u) for u in made)
    assert made == sorted(set(made))
    assert abs(ulid.time_of(made[-1]) - time.time()) < 10
    last = int(ulid.time_of(made[-1]) * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: last - 30 * 10**9)
    assert ulid.ulid() > made[-1]
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert ulid.time_of(ulid.ulid()) == 10**9
    monkeypatch.setattr(time, "time_ns", lambda: last + 10**9)
    assert ulid.ulid() > made[-1]


def test_two_state_directories_share_an_inbox(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What one has claimed is out of the other's sight, and comes to it again;
    what is claimed in the inbox is reported.
    """

    async def play() -> None:
        boxes = []
        for name in "ab":
            (tmp_path / f"{name}.toml").write_text(
                f'[paths]\nstate = "{name}"\n[spool]\nsettle_s = 0.0\n'
            )
            (tmp_path / name).mkdir()
            boxes.append(Inbox(config.load(tmp_path / f"{name}.toml", {})))
        one, other = boxes
        await one.start()
        inbox.drop(one.folder, "x.json", TASK)
        claim = await anext(one.claims())
        assert other.claimed() == set()
        await other.start()
        inbox.drop(one.folder, "y.json", TASK)
        _claimed_there(tmp_path, 7, "earlier.json")
        assert (await anext(other.claims())).name == "y.json"
        again = Inbox(config.load(tmp_path / "a.toml", {}))
        assert await anext(again.claims()) == claim
        await one.stop()
        await other.stop()

    asyncio.run(play())
    printed = capfd.readouterr()
    assert "1 files in .claimed belong to batchd with another state" in printed.out + printed.err


def _claimed_there(folder: Path, mark: int, name: str) -> Path:
    """Put a file where earlier versions claimed, under a mark; return it."""
    there = folder / "inbox/.claimed"
    there.mkdir(mode=0o700, exist_ok=True)
    path = there / f"{ulid.Ulids(mark)()}-{name}"
    path.write_bytes(TASK)
    return path


def test_claims_of_an_earlier_version_go_on(tmp_path: Path) -> None:
    """They lie in the inbox, and are handed out before anything else;
    others' stay where they are.
    """

    async def play() -> None:
        settings = _spool(tmp_path)
        mine, theirs = (
            _claimed_there(files_made(tmp_path), mark, f"{name}.json")
            for name, mark in (("mine", claims.mark(tmp_path / ".batchd")), ("theirs", 7))
        )
        box = Inbox(settings)
        assert box.claimed() == {mine.name[:26]}
        await box.start()
        claim = await anext(box.claims())
        assert (claim.ulid, claim.name) == (mine.name[:26], "mine.json")
        assert claim.path == mine
        assert claim.path.read_bytes() == TASK
        assert theirs.exists()
        await box.stop()

    asyncio.run(play())


def files_made(folder: Path) -> Path:
    """Make the inbox, as an earlier version did."""
    (folder / "inbox").mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("made", ["a link", "a folder", "a file"])
def test_what_stands_in_the_place_of_the_claims_is_in_no_ones_way(
    tmp_path: Path, made: str
) -> None:
    """Any user who can write into the inbox makes it, at any time:
    claims lie elsewhere, and nothing is written through it.
    """
    away = tmp_path / "away"
    away.mkdir()

    def put(place: Path) -> None:
        if made == "a link":
            place.symlink_to(away)
        elif made == "a folder":
            place.mkdir()
        else:
            place.touch()

    async def play() -> None:
        settings = _spool(tmp_path, scan_s=0.05)
        put(files_made(tmp_path) / "inbox/.claimed")
        async with _watching(settings) as (box, found):
            inbox.drop(box.folder, "a.json", TASK)
            await found.until(1)
            assert found.all[0].path.parent == tmp_path / ".batchd/claimed"
        assert not any(away.iterdir())

    asyncio.run(play())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
@pytest.mark.parametrize("made", [None, "a link", "a folder"])
def test_an_inbox_on_another_file_system_keeps_its_claims(tmp_path: Path, made: str | None) -> None:
    """In a folder that no one else can touch:
    not one that somebody made before, and only where the inbox is sticky.
    """
    away = tmp_path / "away"
    away.mkdir()

    async def play() -> None:
        settings = _spool(tmp_path, scan_s=0.05)
        with mounted(tmp_path / "inbox"):
            folder = tmp_path / "inbox"
            folder.chmod(0o777)
            with pytest.raises(PermissionError, match=r"chmod \+t") as refused:
                await Inbox(settings).start()
            said = refusals.closed("serve", refused.value, [])
            assert "chmod +t the inbox" in said
            assert "closed to this user" not in said
            folder.chmod(0o1777)
            if made == "a link":
                (folder / ".claimed").symlink_to(away)
            elif made == "a folder":
                (folder / ".claimed").mkdir()
                os.chown(folder / ".claimed", 65534, 65534)
            async with _watching(settings) as (box, found):
                inbox.drop(box.folder, "a.json", TASK)
                await found.until(1)
                (claim,) = found.all
                assert claim.path.parent == folder / ".claimed"
                assert claim.path.read_bytes() == TASK
                assert box.claimed() == {claim.ulid}
                # Set up safely, and opened to others later:
                # nothing is claimed until that is put right.
                folder.chmod(0o777)
                inbox.drop(box.folder, "b.json", TASK)
                await asyncio.to_thread(_wait_for, lambda: box.trouble is not None)
                assert (folder / "b.json").exists()
                folder.chmod(0o1777)
                await found.until(2)
            there = (folder / ".claimed").lstat()
            assert (there.st_uid, there.st_mode & 0o777) == (0, 0o700)
        assert not any(away.iterdir())

    asyncio.run(play())


def test_a_link_of_another_user_on_the_way_is_refused(tmp_path: Path) -> None:
    """It could lead elsewhere at any time; one of root's, or of the daemon's own user, counts."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "inbox").symlink_to("real")

    async def play() -> None:
        box = Inbox(_spool(tmp_path))
        await box.start()
        inbox.drop(tmp_path / "inbox", "a.json", TASK)
        assert (await anext(box.claims())).name == "a.json"
        await box.stop()
        if os.geteuid() == 0:
            os.chown(tmp_path / "inbox", 65534, 65534, follow_symlinks=False)
            with pytest.raises(OSError, match="inbox on the way there is a link of user 65534"):
                await Inbox(_spool(tmp_path)).start()

    asyncio.run(play())


def test_a_file_that_cannot_be_claimed_costs_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another user's file in a sticky folder stays and is reported;
    what is claimed beside it is handed out.

    So is what was claimed before a sync of the disk failed.
    """
    rename, sync = os.rename, os.fsync
    failures = [OSError(5, "Input/output error")]

    def guarded(name: str, target: str, **folders: int) -> None:
        if name == "theirs.json":
            raise PermissionError(1, "Operation not permitted")
        rename(name, target, **folders)

    def unsteady(descriptor: int) -> None:
        if failures and Path(f"/proc/self/fd/{descriptor}").resolve().name == "claimed":
            raise failures.pop()
        sync(descriptor)

    async def play() -> None:
        async with _watching(_spool(tmp_path, scan_s=0.05)) as (box, claims):
            monkeypatch.setattr(os, "rename", guarded)
            monkeypatch.setattr(os, "fsync", unsteady)
            for name in ("a.json", "theirs.json", "z.json"):
                (box.folder / name).write_bytes(TASK)
            await claims.until(2)
            assert sorted(claims.names) == ["a.json", "z.json"]
            assert _names(box.folder) == {"theirs.json"}

    asyncio.run(play())
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("theirs.json cannot be claimed: Operation not") == 1


def _stand_in(path: Path, made: str) -> None:
    """Put something that is no file under a name."""
    if made == "a link":
        path.symlink_to("/etc/passwd")
    elif made == "a FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
        if "full" in made:
            (path / "x").touch()


@pytest.mark.parametrize("made", ["a link", "a FIFO", "a folder", "a full folder"])
def test_what_takes_a_files_place_in_the_instant_of_its_claim_goes_back(
    tmp_path: Path, made: str
) -> None:
    """It is put back into the inbox; where its name is taken again,
    it is done away with, or goes back under another.
    """

    async def play() -> None:
        box = Inbox(_spool(tmp_path))
        await box.start()
        path = box.folder / "a.json"

        def claim(*, replaced: bool) -> list[Claim]:
            path.write_bytes(TASK)
            look = inbox.signature(path.lstat())
            rename = os.rename

            def late(source: str, target: str, **folders: int) -> None:
                path.unlink()
                _stand_in(path, made)
                rename(source, target, **folders)
                if replaced:
                    path.write_bytes(b"new")

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(os, "rename", late)
                box._claimer.take("a.json", look)
            return box._claimer.taken()

        assert claim(replaced=False) == []
        assert not path.is_file() or path.is_symlink()
        path.rename(tmp_path / "first")
        assert claim(replaced=True) == []
        assert path.read_bytes() == b"new"
        assert list((tmp_path / ".batchd/claimed").iterdir()) == []
        # A name that batchd leaves alone, so that it is not claimed again and again.
        back = [x for x in box.folder.iterdir() if x != path]
        assert all(inbox.ignorable(x.name) for x in back)
        assert len(back) == ("folder" in made)
        await box.stop()

    asyncio.run(play())


def test_what_is_no_file_is_no_claim_of_an_earlier_run(tmp_path: Path) -> None:
    """A daemon that died before it could put such a thing back:
    it is not taken up, and not moved to the outbox.
    """
    _spool(tmp_path)
    (tmp_path / ".batchd/claimed").mkdir()
    for made in ("a link", "a FIFO", "a folder"):
        _stand_in(tmp_path / f".batchd/claimed/{ulid.ulid()}-a.json", made)
    _claimed_there(files_made(tmp_path), claims.mark(tmp_path / ".batchd"), "b.json")
    ours, others = lying(tmp_path / "inbox", tmp_path / ".batchd")
    assert ([claim.name for claim in ours], others) == (["b.json"], [])


@contextlib.contextmanager
def _closed_to_all(folder: Path) -> Iterator[None]:
    """Have a folder be a file system of its user's, as `fusermount` makes them:
    the kernel shows it to no one else.
    """
    device = Path("/dev/fuse")
    if os.geteuid() != 0 or not device.exists():
        pytest.skip("needs FUSE")
    folder.mkdir()
    descriptor = os.open(device, os.O_RDWR)
    flags = 2 | 4  # MS_NOSUID, MS_NODEV
    data = f"fd={descriptor},rootmode=40000,user_id=65534,group_id=65534".encode()
    if ctypes.CDLL(None).mount(b"test", bytes(folder), b"fuse", flags, data):
        os.close(descriptor)
        pytest.skip("needs FUSE")
    try:
        yield
    finally:
        ctypes.CDLL(None).umount2(bytes(folder), 2)  # MNT_DETACH
        os.close(descriptor)


def test_a_file_system_of_a_users_own_keeps_no_other_file_from_being_found(tmp_path: Path) -> None:
    """A user who may write into the inbox may mount one there;
    nothing of it can be seen, and the look goes on.
    """

    async def play() -> None:
        settings = _spool(tmp_path, scan_s=0.05)
        files_made(tmp_path)
        with _closed_to_all(tmp_path / "inbox/mounted.json"):
            inbox.drop(tmp_path / "inbox", "a.json", TASK)
            async with _watching(settings) as (box, found):
                await found.until(1)
                await asyncio.to_thread(_wait_for, lambda: box.trouble is None)
        assert found.names == ["a.json"]

    asyncio.run(play())


def test_a_first_look_that_fails_is_tried_again(tmp_path: Path) -> None:
    """As where no descriptor is free at that moment:
    what was claimed earlier comes once it can be seen.
    """

    async def look() -> None:
        box, claims = Inbox(_spool(tmp_path, scan_s=0.05)), Claims()
        await box.start()
        folder, away = tmp_path / ".batchd/claimed", tmp_path / "away"
        inbox.drop(box.folder, "a.json", TASK)
        folder.rename(away)
        folder.write_bytes(b"")  # a list of it is refused, for root too
        task = asyncio.create_task(claims.collect(box))
        async with asyncio.timeout(PATIENCE_S):
            while box.trouble is None and not task.done():  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.01)
        folder.unlink()
        away.rename(folder)
        await claims.until(1, within_s=PATIENCE_S)
        assert claims.names == ["a.json"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await box.stop()

    asyncio.run(look())
