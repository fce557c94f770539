"""A batchd to attack, once as root and once as an ordinary user."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, HERE, NOBODY_ID, Attack, ordinary_user
from camp import Camp
from layers import layers_of

WHO = ["root", "unprivileged"] if AS_ROOT else ["unprivileged"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``LAYER=name`` keep what tries that layer, and what must work without it all the same.

    See ``weakened``.
    """
    if layer := os.environ.get("LAYER"):
        tried = [item for item in items if layer in layers_of(item)]
        doors = {"camp", "attack"} & {name for item in tried for name in _fixtures(item)}
        ordinary = [item for item in items if item.path.name == "test_ordinary.py"]
        items[:] = [*tried, *(item for item in ordinary if doors & {*_fixtures(item)})]


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture(scope="session")
def somebody() -> list[str]:
    """Return what runs a program as an ordinary user, for whom batchd must be there."""
    prefix = ordinary_user()
    command = [*prefix, sys.executable, "-c", "import batchd.cli, batchd.sandbox, openai"]
    tried = subprocess.run(
        command, env={"PYTHONPATH": str(HERE)}, capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, (
        f"no ordinary user can run batchd here, which half of these tests need: {tried.stderr}"
    )
    return prefix


@pytest.fixture(params=WHO)
def who(request: pytest.FixtureRequest, somebody: list[str]) -> list[str]:
    """Return what runs batchd as root, or as an ordinary user."""
    return somebody if request.param == "unprivileged" else []


@pytest.fixture
def ground(who: list[str]) -> Iterator[Path]:
    """A folder of batchd's own, which others may enter."""
    # A longer path leaves no room for the names of the sockets that are put there.
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="batchd-attack-", dir=place))
    folder.chmod(0o755)
    if AS_ROOT and who:
        os.chown(folder, NOBODY_ID, NOBODY_ID)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def source() -> Path:
    """Return where batchd's code lies."""
    return HERE


@pytest.fixture
def attack(who: list[str], ground: Path) -> Attack:
    """Single commands in the sandbox of a batchd."""
    return Attack([*who, sys.executable], ground)


@pytest.fixture
def camp(who: list[str], ground: Path, model_server: str) -> Camp:
    """A spool with a daemon, whose model says what a test gives it."""
    return Camp.made(ground, tuple(who), model_server)


@pytest.fixture
def by_turns() -> Iterator[None]:
    """One at a time, whichever worker runs it:
    all sandboxes of a user share the kernel's limit on its processes.
    """
    with Path(tempfile.gettempdir(), f"batchd-attacks-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
