"""Programs of every day, whose ways the sandbox counts or narrows, work in it:
none is refused what it needs, and none is killed for what it has not taken.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, HERE, NOBODY_ID, ordinary_user
from limiting import Limited
from test_inside import needs

pytestmark = pytest.mark.in_turns

PROGRAMS = Path(__file__).with_name("everyday")
SMALL = {"max_memory_bytes": 512 << 20}


@pytest.fixture(params=["root", "unprivileged"] if AS_ROOT else ["unprivileged"])
def limited(request: pytest.FixtureRequest) -> Iterator[Limited]:
    """Commands of a task of a batchd that runs as root or as an ordinary user."""
    folder = Path(tempfile.mkdtemp(prefix="batchd-everyday-"))
    folder.chmod(0o755)
    (folder / "state").mkdir(mode=0o700)
    prefix = ordinary_user() if request.param == "unprivileged" else []
    for path in (folder, folder / "state") if prefix else ():
        os.chown(path, NOBODY_ID, NOBODY_ID)
    yield Limited([*prefix, sys.executable], HERE, folder)
    shutil.rmtree(folder)


def works(limited: Limited, name: str, with_what: str) -> str:
    """Run a program in a task's directory; return what it printed."""
    text = (PROGRAMS / name).read_text("utf-8")
    command = f"printf %s {shlex.quote(text)} > {name} && {with_what} {name}"
    (end,) = limited.run(command, policy=SMALL)
    assert (end.exit_code, end.excess) == (0, ""), end.output
    return end.output


@needs("python3")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["processes.py", "database.py", "talking.py"])
def test_what_python_brings_works(limited: Limited, name: str) -> None:
    """multiprocessing; SQLite; sockets, subprocesses and datagrams."""
    works(limited, name, "/usr/bin/python3")


@needs("git")
@pytest.mark.sampled(1)
def test_git_serves_itself(limited: Limited) -> None:
    """A clone over its own protocol, whose ends are processes with pipes and sockets;
    another by way of packs.
    """
    make = "git init -q a && cd a && seq 5000 > f && git add f && git commit -qm one && cd .."
    (end,) = limited.run(
        f"{make} && git clone -q --no-local a b && git clone -q --depth 1 file://$PWD/a c && git -C c gc -q && cmp a/f c/f",
        policy=SMALL,
    )
    assert (end.exit_code, end.output, end.excess) == (0, "", "")


@needs("node")
@pytest.mark.sampled(1)
def test_children_of_a_busy_program_are_no_memory_of_its(limited: Limited) -> None:
    """Node gives them sockets, which are closed unread by the time that they are looked at."""
    assert works(limited, "children.js", "node") == "2400000\n"


@needs("make")
@needs("gcc")
@pytest.mark.long
def test_a_build_of_several_files_at_once_works(limited: Limited) -> None:
    """With make -j, and a compiler that has jobs of its own."""
    works(limited, "build.sh", "bash")


@pytest.mark.skipif(not Path("/usr/lib/postgresql").exists(), reason="no PostgreSQL")
@pytest.mark.long
def test_postgresql_works(limited: Limited) -> None:
    """Its segment of System V is small enough;
    all else is shared memory of POSIX, pipes and sockets.
    """
    assert "300/300" in works(limited, "postgres.sh", "bash")
