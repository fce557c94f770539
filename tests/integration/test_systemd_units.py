"""The units that are shipped, as systemd itself reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from batchd.config.sections import PoolSection

UNITS = Path(__file__).parents[2] / "systemd"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd here"
)


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A short path: a socket's address holds 108 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        return subprocess.run(
            ["systemd-analyze", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": runtime},
        )


@pytest.mark.parametrize(
    ("name", "manager"),
    [
        ("batchd.service", "--system"),
        ("batchd-web.service", "--system"),
        ("batchd-user.service", "--user"),
    ],
)
def test_a_unit_has_nothing_that_systemd_would_ignore(
    tmp_path: Path, name: str, manager: str
) -> None:
    """`systemd-analyze verify` finds nothing to say;
    only the program's path is another one here.
    """
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (UNITS / name).read_text())
    (tmp_path / name).write_text(text)
    done = _analyze(manager, "verify", tmp_path / name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "most"),
    [("batchd.service", 3.0), ("batchd-web.service", 2.0), ("batchd-user.service", 3.4)],
)
def test_the_units_are_hardened(name: str, most: float) -> None:
    """What a service may do, by the measure of systemd itself:
    3.0 or less, 2.0 where it only reads, and 3.4 without root.
    """
    manager = "--user" if "user" in name else "--system"
    path = UNITS / name
    done = _analyze(manager, "security", "--offline=true", "--no-pager", path)
    exposure = re.search(rf"Overall exposure level for {name}: ([\d.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= most


@pytest.mark.parametrize("name", ["batchd.service", "batchd-user.service"])
def test_each_hardening_line_has_its_reason(name: str) -> None:
    """Beside it: a comment speaks for two lines at most."""
    part = (UNITS / name).read_text().partition("# --- Hardening")[2].partition("\n[Install]")[0]
    alone = 2
    for line in filter(None, part.splitlines()[1:]):
        alone = 0 if line.startswith("#") else alone + 1
        assert alone <= 2, line


@pytest.mark.parametrize("name", ["batchd.service", "batchd-user.service"])
def test_systemd_waits_longer_than_the_daemon_drains(name: str) -> None:
    """TimeoutStopSec leaves the default `drain_s` its time, and some."""
    (seconds,) = re.findall(r"(?m)^TimeoutStopSec=(\d+)$", (UNITS / name).read_text())
    assert int(seconds) > PoolSection().drain_s + 10
