"""A worker's side of directories that travel:
what it sends is what the daemon takes, whatever the task does meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sockets
import zstandard
from msgspec.structs import replace as with_fields
from patience import PATIENCE_S

from batchd import wire
from batchd.agent import StopSignal
from batchd.daemon.attempts.coming import Coming
from batchd.errors import TarError, WorkspaceError
from batchd.events import Terms
from batchd.pool.cache import Cache
from batchd.pool.travel import TravellingDirectory
from batchd.records import Batch, Chain, ModelSetup, Pack, Ref, SandboxPolicy, Task
from batchd.sandbox import Sandbox, Workplace
from batchd.workspace import packing
from batchd.workspace.directory_listing import DirectoryLook, changes, look
from batchd.workspace.packs import Shelf

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user's files take root")


def in_place(folder: Path, work: Callable[[Workplace], Awaitable[None]]) -> None:
    """Work in a directory, in the sandbox."""

    async def visit() -> None:
        with await Sandbox(SandboxPolicy()).open(
            str(folder / "task"), fresh=True, network=False, env={}
        ) as place:
            await work(place)

    asyncio.run(visit())


async def written(place: Workplace, command: str) -> DirectoryLook:
    """Return what lies there behind a command."""
    ran = await place.shell(command, timeout_s=PATIENCE_S)
    assert ran.exit_code == 0, ran.output
    return await asyncio.to_thread(place.look, look)


@pytest.mark.parametrize(
    ("swap", "why"),
    [
        ("rm b; mkfifo b", "kind '6'"),
        ("rm b; ln -s a b", "b has become another kind"),
        ("rm b; mkdir b", "b has become another kind"),
        ("rm -r d; mkfifo d", "kind '6'"),
    ],
)
def test_what_becomes_another_kind_of_thing_is_not_packed(
    tmp_path: Path, swap: str, why: str
) -> None:
    """Between the look and the tar: no pack comes of it; of the next look one does."""

    async def work(place: Workplace) -> None:
        found = await written(
            place, "echo a > a; echo b > b; mkdir d; head -c 9000000 /dev/zero > z"
        )
        now = await written(place, swap)
        draft = tmp_path / "draft"
        what = changes({}, found.seen)
        with pytest.raises(TarError, match=why):
            await packing.packed(place, what, found.seen, draft, most=1 << 30, timeout_s=PATIENCE_S)
        assert not draft.exists()
        made = await packing.packed(
            place, changes({}, now.seen), now.seen, draft, most=1 << 30, timeout_s=PATIENCE_S
        )
        assert not made.missing

    in_place(tmp_path, work)


def test_a_socket_is_missed(tmp_path: Path) -> None:
    """Tar leaves it out."""

    async def work(place: Workplace) -> None:
        found = await written(place, "echo b > b")
        (tmp_path / "task/b").unlink()
        with socket.socket(socket.AF_UNIX) as made:
            sockets.bind(made, tmp_path / "task/b")
        made_of = await packing.packed(
            place,
            changes({}, found.seen),
            found.seen,
            tmp_path / "draft",
            most=1 << 30,
            timeout_s=PATIENCE_S,
        )
        assert made_of.missing == {"b"}

    in_place(tmp_path, work)


class Home:
    """The daemon's side of one task's packs: its shelf, and what it says of each part."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(folder)
        self.shelf.prepare()
        self.came: list[Pack] = []
        #: What it would end a worker for.
        self.refused: list[str] = []
        self._coming: Coming | None = None

    async def answer(
        self, message: wire.PackWanted | wire.PackSent
    ) -> wire.PackPart | wire.PackTaken:
        """Answer as the daemon does."""
        if isinstance(message, wire.PackWanted):
            with (self.shelf.path(Pack(digest=message.digest, size=1, plain=1))).open("rb") as file:
                file.seek(message.offset)
                data = file.read(wire.MAX_PART)
                return wire.PackPart(ref=message.ref, attempt=message.attempt, data=data)
        if not message.offset:
            self._coming = Coming(self.shelf, message.pack, 1 << 30)
        assert self._coming
        try:
            if self._coming.add(message.pack, message.offset, message.data):
                self.came.append(message.pack)
        except WorkspaceError as error:
            self.refused.append(str(error))
        return wire.PackTaken(ref=message.ref, attempt=message.attempt)


def travelling(
    tmp_path: Path, home: Home, chain: Chain, cache: Cache | None = None, *, work: str = ""
) -> TravellingDirectory:
    """Return the directory of a task on another machine; ``work``: the task's ``dir``."""
    task = Task(id="001", first_prompt="Do it", model="demo/x", dir=work)
    setup = ModelSetup(name=task.model)
    run = wire.Run(
        ref=Ref("b", "001"),
        attempt=1,
        task=task,
        batch=Batch(name="b", claim="c", outbox=str(tmp_path), request="r", received_at=0.0),
        terms=Terms(model=setup, judge=setup),
        queued_at=time.time(),
        chain=chain,
        base_s=PATIENCE_S,
    )
    return TravellingDirectory(
        run,
        cache or Cache(tmp_path / "cache"),
        SandboxPolicy(),
        ask=home.answer,
        stop=StopSignal(),
        waits=lambda _: None,
    )


def begun(
    tmp_path: Path,
    files: TravellingDirectory,
    work: Callable[[Workplace], Awaitable[None]],
) -> None:
    """Work in a directory that has arrived."""

    async def visit() -> None:
        await files.arrive()
        places = files.places(files._run)
        with await Sandbox(SandboxPolicy()).open(
            places.directory, fresh=True, network=False, env={}
        ) as place:
            await files.begin(place)
            await work(place)
        await files.leave()

    tmp_path.chmod(0o755)
    asyncio.run(visit())


def test_what_the_daemon_cannot_have_ends_the_task(tmp_path: Path) -> None:
    """A file that tar cannot read though it stays as it is:
    nothing is sent, and the error names it.
    """
    home = Home(tmp_path / "home")
    files = travelling(tmp_path, home, Chain())

    async def work(place: Workplace) -> None:
        await written(place, "echo a > a")
        folder = next((tmp_path / "cache/work").glob("*/b.001.1/task"))
        (folder / "roots").write_text("x")
        (folder / "roots").chmod(0o600)
        with pytest.raises(WorkspaceError, match="cannot travel: roots cannot be read"):
            await files.keep(place)
        assert not home.came
        (folder / "roots").unlink()
        await files.keep(place)
        assert len(home.came) == 1

    begun(tmp_path, files, work)


def test_no_worker_sends_what_the_daemon_refuses(tmp_path: Path) -> None:
    """While a file and a pipe take turns in one place:
    a pack of ours comes, or an error that ends the task.
    """
    home = Home(tmp_path / "home")
    files = travelling(tmp_path, home, Chain())
    stop = threading.Event()

    async def work(place: Workplace) -> None:
        folder = next((tmp_path / "cache/work").glob("*/b.001.1/task"))
        await written(place, "echo b > b; mkfifo p; echo z > z")
        turns = asyncio.create_task(asyncio.to_thread(take_turns, folder, stop))
        try:
            for number in range(6):
                await written(place, f"echo {number} > n")
                with contextlib.suppress(WorkspaceError):
                    await files.keep(place)
        finally:
            stop.set()
            await turns
        await files.keep(place)
        assert home.came

    begun(tmp_path, files, work)
    assert home.refused == []


def take_turns(folder: Path, stop: threading.Event) -> None:
    """Have a file and a pipe take turns."""
    while not stop.is_set():
        for one, other in (("b", "o"), ("p", "b"), ("b", "p"), ("o", "b")):
            (folder / one).rename(folder / other)
            time.sleep(0.001)


def pack_at(home: Home, data: bytes) -> Pack:
    """Return a pack that lies at home."""
    pack = Pack(digest=hashlib.sha256(data).hexdigest(), size=len(data), plain=1 << 20)
    home.shelf.path(pack).write_bytes(data)
    return pack


def good(name: str, text: bytes) -> bytes:
    """Return what a pack with one file is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return zstandard.compress(b"batchd-pack 1\n" + (0).to_bytes(16, "big") + out.getvalue())


def test_a_cache_of_nothing_is_enough_for_work(tmp_path: Path) -> None:
    """``--cache-gb 0``: what a task needs stays as long as it does, and then goes."""
    home, cache = Home(tmp_path / "home"), Cache(tmp_path / "cache", 0)
    packs = [pack_at(home, good(f"./{n}", b"x" * 1000)) for n in range(4)]
    chain = Chain(base=packs[0], first=packs[1], changes=tuple(packs[2:]))
    files = travelling(tmp_path, home, chain, cache)

    async def work(place: Workplace) -> None:
        assert set((await written(place, "true")).seen) == {"1", "2", "3"}
        assert (cache.base(packs[0]) / "0").read_bytes() == b"x" * 1000

    begun(tmp_path, files, work)
    assert not list((tmp_path / "cache/packs").iterdir())
    assert not cache.base(packs[0]).exists()
    cache.close()


def test_a_broken_pack_is_the_tasks_error(tmp_path: Path) -> None:
    """It is said where the agent opens the directory, which ends the task;
    the pack is fetched once more by the next one.
    """
    home, cache = Home(tmp_path / "home"), Cache(tmp_path / "cache")
    broken = pack_at(home, b"junk" * 100)
    files = travelling(tmp_path, home, Chain(first=broken), cache)
    asyncio.run(files.arrive())
    with pytest.raises(WorkspaceError, match="it is not a pack"):
        files.places(files._run)
    assert not cache.shelf.has(broken)
    cache.close()


def test_a_full_disk_here_is_this_machines(tmp_path: Path) -> None:
    """Another one may have room: the error is one of the machine, though tar has said it."""
    small = tmp_path / "small"
    small.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], check=True)
    try:
        tmp_path.chmod(0o755)
        home, cache = Home(tmp_path / "home"), Cache(small)
        pack = pack_at(home, good("./a", bytes(9 << 20)))
        files = travelling(tmp_path, home, Chain(first=with_fields(pack, plain=10 << 20)), cache)
        with pytest.raises(OSError, match="Errno 28"):
            asyncio.run(files.arrive())
        cache.close()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def packed_as(*entries: tarfile.TarInfo, removed: bytes = b"", folders: bytes = b"") -> bytes:
    """Return a pack with these entries, files with one letter, and lists as they are stored."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            entry.size = int(entry.isreg())
            tar.addfile(entry, io.BytesIO(b"x"))
    lists = b"".join(len(each).to_bytes(8, "big") + each for each in (removed, folders))
    return zstandard.compress(
        b"batchd-pack 1\n" + lists + (out.getvalue() if entries else b""), level=1
    )


def entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    """Return an entry of a pack."""
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, mode
    made.devmajor, made.devminor = 1, 3
    return made


def unpacked(folder: Path, *packs: bytes) -> None:
    """Lay packs out in a directory, as one chain. Raises as the function of that name does."""
    home = Home(folder / "home")
    chain = [pack_at(home, data) for data in packs]

    async def work(place: Workplace) -> None:
        await packing.unpacked(place, home.shelf, chain, PATIENCE_S)

    in_place(folder, work)


def test_a_chain_is_laid_out_in_its_order(tmp_path: Path) -> None:
    """What a pack removes may come back as another kind of thing,
    and what one makes read-only the next one changes.
    """
    unpacked(
        tmp_path,
        packed_as(entry("./d/a"), entry("./d", tarfile.DIRTYPE, 0o500), entry("./k")),
        packed_as(entry("./d/b"), entry("./d", tarfile.DIRTYPE, 0o500), folders=b"d\0"),
        packed_as(removed=b"k\0d/a\0", folders=b"d\0"),
        packed_as(),
        packed_as(entry("./k/in"), entry("./k", tarfile.DIRTYPE, 0o755), folders=b"k\0"),
        *(packed_as(entry(f"./d/{n}"), folders=b"d\0") for n in range(300)),
        packed_as(removed=b"d/7\0none\0", folders=b"d\0none\0"),
    )
    there = {str(path.relative_to(tmp_path / "task")) for path in (tmp_path / "task").rglob("*")}
    assert there == {"d", "d/b", "k", "k/in", *(f"d/{n}" for n in range(300) if n != 7)}


CUT = packed_as(*(entry(f"./{n}") for n in range(300)))
WHOLE = zstandard.decompress(packed_as(entry("./a"), entry("./b")), 1 << 20)


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        (b"junk" * 100, False),
        (packed_as(removed=b"no end"), False),
        (CUT[: len(CUT) // 2], None),
        (zstandard.compress(WHOLE[:700]), True),
        (packed_as(entry("./a"), removed=b".\0"), True),
        (packed_as(entry("./c", tarfile.CHRTYPE)), True),
        (packed_as(entry("./../first")), True),
        (packed_as(entry("./s", mode=0o4755)), True),
        (zstandard.compress(WHOLE + bytes(1 << 19)), True),
    ],
    ids=["junk", "list", "cut", "tar", "removed", "device", "up", "set-uid", "more"],
)
def test_a_broken_pack_amid_a_chain_is_named(
    tmp_path: Path, broken: bytes, left: bool | None
) -> None:
    """Nothing behind it is laid out; and where its head shows it, nothing before it either."""
    name = hashlib.sha256(broken).hexdigest()[:12]
    with pytest.raises(packing.PackError, match=f"^pack {name}: "):
        unpacked(tmp_path, packed_as(entry("./first")), broken, packed_as(entry("./last")))
    assert not (tmp_path / "task/last").exists()
    if left is not None:
        assert (tmp_path / "task/first").exists() is left
