"""What a worker elsewhere keeps of directories: how much stays,
what is never taken from a task, and what dead workers leave.
"""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from batchd.pool.cache import Cache
from batchd.records import Pack

#: A worker that is killed where it first removes a folder of its own.
KILLED = """
import os, sys
from pathlib import Path
from batchd.pool.cache import Cache
cache = Cache(Path(sys.argv[1]))
own, = (Path(sys.argv[1]) / "work").iterdir()
for name in ("a", "b"):
    (own / name).mkdir()
    (own / name / "file").touch()
sys.addaudithook(lambda event, _: os._exit(9) if event == "os.rmdir" else None)
cache.close()
"""


def put(cache: Cache, text: str, age_s: float = 0.0) -> Pack:
    """Have a pack of so many bytes lie in a cache, that was used so long ago."""
    pack = Pack(digest=hashlib.sha256(text.encode()).hexdigest(), size=1000, plain=1000)
    cache.shelf.path(pack).write_bytes(bytes(pack.size))
    when = time.time() - age_s
    os.utime(cache.shelf.path(pack), (when, when))
    return pack


def based(cache: Cache, pack: Pack) -> Path:
    """Have a base be whole, and used by one task."""
    cache.base(pack).mkdir()
    cache.made_base(pack)
    return cache.base(pack)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """Down to what may stay."""
    cache = Cache(tmp_path, 2000)
    ages = [put(cache, str(age), age) for age in (30, 10, 20)]
    cache.trim()
    assert [cache.shelf.has(pack) for pack in ages] == [False, True, True]
    cache.close()


def test_a_pack_that_is_used_stays(tmp_path: Path) -> None:
    """Whatever may stay, and whichever worker of this user trims: it goes once it is let go of."""
    cache, other = Cache(tmp_path, 0), Cache(tmp_path, 0)
    pack, free = put(cache, "used"), put(cache, "free")
    held = cache.shelf.hold(pack)
    cache.trim()
    other.trim()
    assert cache.shelf.has(pack)
    assert not cache.shelf.has(free)
    os.close(held)
    other.trim()
    assert not cache.shelf.has(pack)
    assert cache.shelf.hold(pack) == -1
    cache.close()
    other.close()


def test_what_is_used_does_not_count(tmp_path: Path) -> None:
    """The bound is one of what is kept for later, be it a pack or a base."""
    cache = Cache(tmp_path, 1000)
    held, free = cache.shelf.hold(put(cache, "used")), put(cache, "free", 50)
    base = Pack(digest="0" * 64, size=1000, plain=1000)
    based(cache, base)
    assert cache.use_base(base)
    cache.leave_base(base)
    cache.trim()
    assert cache.shelf.has(free)
    os.close(held)
    cache.close()


def test_a_base_goes_when_no_task_uses_it(tmp_path: Path) -> None:
    """With packs, by what was used last."""
    cache = Cache(tmp_path, 1000)
    pack = put(cache, "base", 50)
    folder = based(cache, pack)
    assert cache.use_base(pack)
    cache.leave_base(pack)
    cache.trim()
    assert folder.exists()  # one uses it still
    cache.leave_base(pack)
    young = put(cache, "young", -50)
    cache.trim()
    assert cache.shelf.has(young)
    assert not folder.exists()
    assert not cache.use_base(pack)
    based(cache, pack)  # it is made once more
    cache.close()


def test_locks_last_as_long_as_they_are_used(tmp_path: Path) -> None:
    """One for all that make the same, none when no one does."""
    cache = Cache(tmp_path)
    one = cache.making("x")
    assert cache.making("x") is one
    cache.making("y")
    del one
    gc.collect()
    assert not cache._making
    cache.close()


def test_what_a_worker_was_killed_in_removing_is_removed(tmp_path: Path) -> None:
    """By the next one: its lock goes last."""
    died = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert died.returncode == 9
    assert len(list((tmp_path / "work").iterdir())) == 1
    cache = Cache(tmp_path)
    (own,) = (tmp_path / "work").iterdir()
    assert own.name.startswith(str(os.getpid()))
    cache.close()
    assert not list((tmp_path / "work").iterdir())


def test_what_has_no_lock_goes_when_it_is_old(tmp_path: Path) -> None:
    """A young one may be made at this moment."""
    old, young = tmp_path / "work/old", tmp_path / "work/young"
    for folder in (old, young):
        (folder / "x").mkdir(parents=True)
    os.utime(old, (1, 1))
    Cache(tmp_path).close()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["young"]
