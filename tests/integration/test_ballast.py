"""The store's ballast: room for orders and ends of tasks on a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import until

from batchd.errors import StoreError, UsageError
from batchd.events import TaskFinished
from batchd.records import Batch, Ref, Task, TaskStatus
from batchd.store import backups, lookups, operations
from batchd.store.ballast import BALLAST_BYTES, LAY_AGAIN_S, SPARE_BYTES
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

pytestmark = pytest.mark.in_turns

_MB = 1 << 20
_ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")


def opened(path: Path) -> Store:
    """Open a store, and add a batch to it once."""
    store = Store(path)
    outbox = str(path.parent)
    batch = Batch(name="b", claim="b", outbox=outbox, request="request.json", received_at=1.0)
    tasks = [Task(id=str(n), first_prompt="x", model="p/m") for n in range(200)]
    asyncio.run(store.write(operations.add_batch, batch, tasks))
    return store


def ballast(path: Path) -> Path:
    """Return where that of a store lies."""
    return path.with_name(f"{path.name}-ballast")


def laid(path: Path) -> bool:
    """Return whether it takes all of its room on the disk."""
    file = ballast(path)
    return (
        file.exists()
        and file.stat().st_size == BALLAST_BYTES
        and file.stat().st_blocks * 512 >= BALLAST_BYTES
    )


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Give a disk of memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "batchd-test", folder]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all room there is."""
    file = folder / "filler"
    for piece in (1 << 16, 1 << 12):
        with contextlib.suppress(OSError), file.open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(piece))
    return file


async def _end(store: Store, number: int, text: str = "{}") -> bool:
    end = TaskFinished(at=1.0, status=TaskStatus.COMPLETED, reason=None, result=text)
    return await store.write(TaskTransaction.finish, Ref("b", str(number)), end, attempt=None)


async def _each(works: Sequence[Coroutine[Any, Any, object]]) -> int:
    """Do one after the other, to the first that fails; return how many were done."""
    try:
        for work in works:
            await work
        return len(works)
    finally:
        for work in works:
            work.close()


def test_it_is_there_for_good(tmp_path: Path) -> None:
    """It takes blocks of the disk, is for its owner's eyes alone,
    and is not written again at each start.
    """
    path = tmp_path / "batchd.db"
    with contextlib.closing(opened(path)):
        until(lambda: laid(path))
        found = ballast(path).stat()
        assert found.st_mode & 0o777 == 0o600
        assert len(set(ballast(path).read_bytes()[:4096])) > 200, "a file system makes it smaller"
    with contextlib.closing(Store(path)) as store:
        asyncio.run(store.ready(None))
        assert ballast(path).stat().st_mtime_ns == found.st_mtime_ns
    # One that takes no room is none.
    os.truncate(ballast(path), 0)
    os.truncate(ballast(path), BALLAST_BYTES)
    with contextlib.closing(Store(path)) as store:
        asyncio.run(store.ready())
        until(lambda: laid(path))


@_ROOT_ALONE
def test_what_is_urgent_goes_through_on_a_full_disk(tmp_path: Path) -> None:
    """Ends and orders do, until it is used up; nothing else.

    It is laid again where there is plenty of room, not before.
    """
    with small_disk(tmp_path / "disk", 100 * _MB) as disk:
        path = disk / "batchd.db"
        with contextlib.closing(opened(path)) as store:
            until(lambda: laid(path))
            filler = fill(disk)

            async def full() -> None:
                starts = [
                    store.write(operations.dispatch, Ref("b", str(number))) for number in range(200)
                ]
                with pytest.raises(StoreError, match="the disk is full"):
                    await _each(starts)
                assert laid(path)
                assert await _each([_end(store, number) for number in range(199, 100, -1)]) == 99
                assert 0 < ballast(path).stat().st_size < BALLAST_BYTES
                large = [_end(store, number, os.urandom(_MB).hex()) for number in range(99, 0, -1)]
                with pytest.raises(StoreError, match="the disk is full"):
                    await _each(large)
                assert ballast(path).stat().st_size < _MB

            asyncio.run(full())
            left = ballast(path).stat().st_size
            # Room, but too little: SPARE is to be free as well.
            os.truncate(filler, filler.stat().st_size - SPARE_BYTES // 2)
            asyncio.run(_end(store, 1))
            time.sleep(3 * LAY_AGAIN_S)
            assert ballast(path).stat().st_size == left
            filler.unlink()
            until(lambda: laid(path))
        with contextlib.closing(Store(path)) as store:
            assert store.read(lookups.unfinished, "b") < 101


@_ROOT_ALONE
def test_a_small_disk_has_none(tmp_path: Path) -> None:
    """Where it would take room that is needed, there is none, and all works as without."""
    with small_disk(tmp_path / "disk", SPARE_BYTES) as disk:
        path = disk / "batchd.db"
        with contextlib.closing(opened(path)) as store:
            asyncio.run(_end(store, 1))
            time.sleep(3 * LAY_AGAIN_S)
            assert not ballast(path).exists()
            fill(disk)
            large = [_end(store, number, os.urandom(_MB).hex()) for number in range(2, 50)]
            with pytest.raises(StoreError, match="the disk is full"):
                asyncio.run(_each(large))


def test_it_is_not_given_up_for_other_troubles(tmp_path: Path) -> None:
    """A file that may not grow is no want of room: giving room up would not help."""
    path = tmp_path / "batchd.db"
    with contextlib.closing(opened(path)) as store:
        until(lambda: laid(path))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(StoreError):
                asyncio.run(_end(store, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert laid(path)


def test_it_belongs_to_no_copy(tmp_path: Path) -> None:
    """A backup is not written over it, and a restore takes it away:
    the next daemon lays its own.
    """
    path, backup = tmp_path / "batchd.db", tmp_path / "backup"
    with contextlib.closing(opened(path)):
        until(lambda: laid(path))
    with pytest.raises(UsageError, match="a part of the store itself"):
        backups.back_up(path, ballast(path))
    backups.back_up(path, backup)
    assert backup.stat().st_size < BALLAST_BYTES
    former = backups.put_in_place(backups.draft(backup, path), path)
    assert former is not None
    assert not list(tmp_path.glob("*-ballast"))
