"""Trees that are measured while somebody is at work in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchd import trees

#: Moves a folder to and fro, for ever.
MOVING = "import os, sys\nprint('begun', flush=True)\nhere, there = sys.argv[1:]\nwhile True:\n    os.rename(here, there); os.rename(there, here)"
FILES, SIZE = 10, 1 << 20


@contextmanager
def _moving(here: Path, there: Path) -> Iterator[None]:
    command = [sys.executable, "-c", MOVING, str(here), str(there)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as mover:
        assert mover.stdout
        mover.stdout.readline()
        try:
            yield
        finally:
            mover.kill()


def test_a_folder_that_is_moved_to_and_fro_hides_nothing_beside_it(tmp_path: Path) -> None:
    """What lies beside it, and above, is measured each time,
    however often the one that is being looked into is gone.
    """
    moved = tmp_path / "x/p/moved"
    moved.mkdir(parents=True)
    (tmp_path / "x/q").mkdir()
    for number in range(1500):
        (moved / str(number)).touch()
    for number in range(FILES):
        folder = tmp_path / f"x/{number}"
        folder.mkdir()
        (folder / "file").write_bytes(bytes(SIZE))
    top = os.open(tmp_path, trees.OPEN)
    with _moving(moved, tmp_path / "x/q/moved"):
        measured = [trees.size(top)[0] for _ in range(40)]
    os.close(top)
    assert min(measured) >= FILES * SIZE


def test_depth_hides_nothing(tmp_path: Path) -> None:
    """Files in each of many levels are all measured, with a handful of descriptors."""
    top = os.open(tmp_path, trees.OPEN)
    here = os.dup(top)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
        os.write(file, bytes(1 << 14))
        os.close(file)
        here, above = os.open("d", trees.OPEN, dir_fd=here), here
        os.close(above)
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    size, whole = trees.size(top)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(top)
    assert whole
    assert size >= 300 << 14
    trees.remove(tmp_path / "d")
