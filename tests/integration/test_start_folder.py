"""The directory that the daemon is started in: it decides what relative paths mean, and may go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from patience import PATIENCE_S, until

from batchd import control
from batchd.errors import NoDaemonError
from tests.conftest import CONFIG, NO_REPORT

pytestmark = pytest.mark.in_turns

_TASK = json.dumps({"tasks": [{"first_prompt": "go"}]})


@dataclass(frozen=True)
class Start:
    """A directory to start the daemon in, beside all else that it needs."""

    #: The directory, ``here``, and the user's home, ``home``, lie in it.
    folder: Path
    #: Where the stand-in model is.
    base_url: str

    @property
    def here(self) -> Path:
        """The directory."""
        return self.folder / "here"

    @property
    def environment(self) -> dict[str, str]:
        """A home without a configuration."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BATCHD_", "XDG_"))}
        home = str(self.folder / "home")
        return {**kept, "HOME": home, "PYTHONPATH": str(warm.ROOT)}

    @property
    def settings(self) -> str:
        """The configuration, as it is written into a file."""
        return NO_REPORT + CONFIG.format(base_url=self.base_url, model="steps-1")

    @property
    def log(self) -> str:
        """What the daemon has said."""
        return (self.folder / "log").read_text()

    @contextlib.contextmanager
    def serving(self, state: Path, *options: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the daemon, from the moment that it answers in ``state`` to its end."""
        command = [sys.executable, "-m", "batchd", *options, "serve"]
        environment = {**self.environment, **more}
        with (
            (self.folder / "log").open("ab") as log,
            subprocess.Popen(command, cwd=self.here, stderr=log, env=environment) as daemon,
        ):
            try:
                until(lambda: _answers(state) or daemon.poll() is not None)
                assert daemon.poll() is None, self.log
                yield daemon
            finally:
                daemon.terminate()
                try:
                    daemon.wait(PATIENCE_S)
                finally:
                    daemon.kill()


def _answers(state: Path) -> bool:
    try:
        control.request(state, "status")
    except (NoDaemonError, OSError):
        return False
    return True


def _worker(state: Path) -> int:
    """Return the process of the daemon's worker; 0: it is not up."""
    (worker,) = control.request(state, "status")["workers"]
    return worker["pid"] or 0


@pytest.fixture
def start(tmp_path: Path, model_server: str) -> Start:
    """An empty directory, and an empty home."""
    found = Start(tmp_path, model_server)
    found.here.mkdir()
    (tmp_path / "home").mkdir()
    return found


def test_a_daemon_outlives_the_directory_that_it_was_started_in(start: Start) -> None:
    """It keeps no disk there, starts workers, and reads its configuration again, by whatever
    path that was named.
    """
    (start.folder / "config.toml").write_text(start.settings)
    with start.serving(start.folder / ".batchd", "--config", "../config.toml") as daemon:
        assert Path(f"/proc/{daemon.pid}/cwd").readlink() == Path("/")
        start.here.rmdir()
        until(lambda: _worker(start.folder / ".batchd"))
        os.kill(_worker(start.folder / ".batchd"), signal.SIGKILL)
        (start.folder / "inbox/b.json").write_text(_TASK)
        until((start.folder / "outbox/b/summary.json").exists)
        daemon.send_signal(signal.SIGHUP)
        until(lambda: "config_reloaded" in start.log)
    assert "kept_old" not in start.log
    assert "Traceback" not in start.log


def test_relative_paths_mean_what_they_meant_where_there_is_no_file(start: Start) -> None:
    """Those of variables lie in the directory of the start, also when the configuration is read
    again, and is still not there; those of `tune` too.
    """
    paths = {f"BATCHD_PATHS__{name.upper()}": name for name in ("inbox", "outbox", "state")}
    model = {
        "BATCHD_AGENT__MODEL": "test/steps-1",
        "BATCHD_PROVIDERS__TEST__BASE_URL": start.base_url,
        "BATCHD_EVALUATION__BY": "none",
        "BATCHD_REPORT__ENABLED": "false",
    }
    state = start.here / "state"
    with start.serving(state, **paths, **model) as daemon:
        (start.here / "inbox/b.json").write_text(_TASK)
        until((start.here / "outbox/b/summary.json").exists)
        daemon.send_signal(signal.SIGHUP)
        until(lambda: "config_reloaded" in start.log)
        assert "needs_restart" not in start.log
        (start.here / "work/games").mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(start.here / "work/games", 65534, 65534)
        control.request(state, "tune", changes={"workspace.root": "work"})
        (start.here / "inbox/c.json").write_text(_TASK.replace('"go"', '"go", "dir": "games"'))
        until((start.here / "outbox/c/summary.json").exists)
    summary = json.loads((start.here / "outbox/c/summary.json").read_text())
    assert summary["counts"]["completed"] == 1, summary
