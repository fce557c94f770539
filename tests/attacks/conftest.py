"""A batchd to attack, once as root and once as an ordinary user."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, HERE, NOBODY, Attack


def _open_to_all() -> Path:
    return Path(tempfile.mkdtemp(prefix="batchd-attack-"))


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    """The sandbox's code where every user can read it: the checkout may be private."""
    folder = _open_to_all()
    package = folder / "batchd"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "masking.py", "sealing.py", "trees.py"):
        shutil.copy(HERE / "batchd" / name, package)
    for name in ("records", "sandbox"):
        shutil.copytree(HERE / "batchd" / name, package / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["root", "unprivileged"] if AS_ROOT else ["unprivileged"])
def attack(request: pytest.FixtureRequest, source: Path) -> Iterator[Attack]:
    """An attack on a batchd that runs as root, or as an ordinary user."""
    python = [sys.executable]
    if AS_ROOT and request.param == "unprivileged":
        python = [*NOBODY, "/usr/bin/python3"]
        if subprocess.run([*python, "-c", "import enum; enum.StrEnum"], check=False).returncode:
            pytest.skip("no Python 3.11 that an ordinary user could run")
    folder = _open_to_all()
    folder.chmod(0o777)
    yield Attack(python, source, folder)
    shutil.rmtree(folder)
