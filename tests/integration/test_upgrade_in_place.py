"""Files that change under a running daemon, as an upgrade changes them:
its workers stay its own, or it says why none comes up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S, until

import batchd
from batchd import control
from batchd.errors import NoDaemonError
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns


class Installed:
    """A spool whose daemon runs a copy of the package."""

    def __init__(self, spool: Any) -> None:
        self.spool = spool
        self.folder: Path = spool.folder
        self.package = self.folder / "lib" / "batchd"
        # With what is compiled, which the times of the files keep valid.
        shutil.copytree(Path(batchd.__file__).parent, self.package)

    @contextlib.contextmanager
    def serving(self) -> Iterator[int]:
        """Run the daemon meanwhile; its process."""
        environment = {**self.spool.environment, "PYTHONPATH": str(self.package.parent)}
        with (
            (self.folder / "daemon.log").open("ab") as log,
            subprocess.Popen(
                self.spool.command("serve"), stderr=log, env=environment, cwd=self.folder
            ) as process,
        ):
            try:
                until(self.status)
                yield process.pid
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
                process.kill()

    def status(self) -> dict[str, Any]:
        """Return what the daemon says; nothing where none is up."""
        try:
            return control.request(self.folder / ".batchd", "status")
        except NoDaemonError:
            return {}

    def drop(self, name: str) -> None:
        """Put a file with two tasks into the inbox."""
        tasks = [{"first_prompt": f"{self.folder} {name} {i}"} for i in range(2)]
        self.spool.write("dropped", tasks).rename(self.folder / "inbox" / f"{name}.json")

    def summary(self, batch: str) -> Path:
        """Return where a batch's summary will be."""
        return self.folder / "outbox" / batch / "summary.json"


def kill(*pids: int) -> None:
    """Kill processes that may have gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def fork_servers(daemon: int) -> list[int]:
    """Return the fork servers of a daemon."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text()
    for thread in Path(f"/proc/{daemon}/task").iterdir():
        children += " " + (thread / "children").read_text()
    found = {int(pid) for pid in children.split()}
    return [pid for pid in found if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["another version", "other files"])
def test_a_daemon_whose_files_were_exchanged_holds_its_tasks(spool: Any, way: str) -> None:
    """Workers of the old fork server serve on;
    with it gone `status` names cause and fix, and a restart goes on.
    """
    at = Installed(spool)
    with at.serving() as daemon:
        until(lambda: [w for w in at.status()["workers"] if w["pid"]])
        changed, line = (
            (at.package / "version.py", '__version__ = "99.0"\n')
            if way == "another version"
            else (at.package / "pool" / "worker.py", "\n# another line\n")
        )
        with changed.open("a") as file:
            file.write(line)
        agent = at.package / "agent" / "loop.py"
        named = agent.read_text()
        agent.write_text(f"{named}\ndel run  # it has another name there\n")
        at.drop("before")
        until(at.summary("before").exists)
        assert at.status()["troubles"] == []
        kill(*fork_servers(daemon), *(w["pid"] for w in at.status()["workers"] if w["pid"]))
        until(lambda: at.status()["troubles"])
        at.drop("after")
        until(lambda: at.status()["tasks"]["queued"] == 2)
        [trouble] = at.status()["troubles"]
        assert trouble["what"] == "worker_trouble"
        assert ("99.0" if way == "another version" else "other files") in trouble["message"]
        assert trouble["mend"].startswith("restart the daemon")
        shown = spool.batchd("status").stdout
        assert "some tasks have no worker" in " ".join(shown.split())
        assert at.status()["tasks"]["running"] == 0
        with StoreReader(at.folder / ".batchd/batchd.db") as reader:
            assert [str(t.status) for t in reader.tasks("after")] == ["queued", "queued"]
    agent.write_text(named)
    with at.serving():
        until(at.summary("after").exists)
    assert spool.result("after", "001")["attempts"] == 1


def test_a_large_file_waits_for_a_daemon_of_the_same_files(spool: Any) -> None:
    """What would parse it apart is of the upgrade:
    it stays claimed, is not refused, and goes on after a restart.
    """
    at = Installed(spool)
    with at.serving():
        with (at.package / "config" / "sections.py").open("a") as file:
            file.write("\nraise RuntimeError\n")
        tasks = [{"first_prompt": f"{at.folder} large {'x' * 9000}"}]
        spool.write("dropped", tasks).rename(at.folder / "inbox" / "large.json")
        until(lambda: at.status()["troubles"])
        [trouble] = at.status()["troubles"]
        assert (trouble["what"], trouble["mend"][:18]) == ("inbox_trouble", "restart the daemon")
        text = (at.package / "config" / "sections.py").read_text()
        (at.package / "config" / "sections.py").write_text(text.replace("raise RuntimeError\n", ""))
    with at.serving():
        until(at.summary("large").exists)
    assert spool.result("large", "001")["status"] == "completed"


def test_a_copy_waits_for_a_daemon_of_the_same_files(spool: Any) -> None:
    """What would make it is of the upgrade: its task waits,
    `status` says for what, and it goes on after a restart.
    """
    at = Installed(spool)
    tree = at.folder / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    if os.geteuid() == 0:
        for path in (tree, tree / "a"):
            shutil.chown(path, "nobody")
    with at.serving():
        until(lambda: [w for w in at.status()["workers"] if w["pid"]])
        assert spool.batchd("pause", "--all").returncode == 0
        tasks = [{"first_prompt": f"{at.folder} copy", "dir": "tree", "workspace": "copy"}]
        spool.write("dropped", tasks).rename(at.folder / "inbox" / "copy.json")
        until(lambda: at.status()["tasks"]["queued"])
        with (at.package / "workspace" / "__main__.py").open("a") as file:
            file.write("\n# another line\n")
        assert spool.batchd("resume", "--all").returncode == 0
        until(lambda: at.status()["troubles"])
        [trouble] = at.status()["troubles"]
        assert (trouble["what"], trouble["mend"][:18]) == ("mirror_trouble", "restart the daemon")
        assert at.status()["tasks"]["queued"] == 1
    with at.serving():
        until(at.summary("copy").exists)
    assert spool.result("copy", "001")["status"] == "completed"


def test_workers_that_cannot_start_are_a_trouble_until_they_can(spool: Any) -> None:
    """A broken installation holds the tasks, uncounted;
    once it is whole again they go on by themselves.
    """
    at = Installed(spool)
    with at.serving() as daemon:
        until(lambda: [w for w in at.status()["workers"] if w["pid"]])
        hidden = at.package.rename(at.package.with_name("away"))
        kill(*fork_servers(daemon), *(w["pid"] for w in at.status()["workers"] if w["pid"]))
        at.drop("games")
        until(lambda: at.status()["troubles"])
        [trouble] = at.status()["troubles"]
        assert (trouble["what"], bool(trouble["message"])) == ("worker_trouble", True)
        until(lambda: at.status()["tasks"]["queued"] == 2)
        hidden.rename(at.package)
        until(at.summary("games").exists)
        assert at.status()["troubles"] == []
    assert spool.result("games", "001")["attempts"] == 1


def test_a_daemon_that_is_killed_leaves_no_sockets_behind(spool: Any) -> None:
    """Neither in the folder for temporary files nor,
    once the next one is up, in the state directory.
    """
    sockets = spool.folder / ".batchd" / "pool"
    for _ in range(3):
        with spool.serving() as process:
            until(
                lambda: any(
                    w["pid"] for w in control.request(spool.folder / ".batchd", "status")["workers"]
                )
            )
            assert len(list(sockets.iterdir())) == 1
            process.kill()
    assert not list(spool.folder.glob("pymp-*"))  # its TMPDIR
    assert not [p for p in Path("/tmp").glob("pymp-*/listener-*") if str(spool.folder) in str(p)]
