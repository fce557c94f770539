"""What the sandbox rests on goes away under a whole daemon: it waits, and fails no task for it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from weather import Station, until

_USER = "batchd-weather:x:54321:54321::/nonexistent:/usr/sbin/nologin\n"


def test_a_sandbox_user_that_is_deleted_holds_the_queue(tmp_path: Path, model_server: str) -> None:
    """Nothing is started and nothing fails until the user is back; log and status say why."""
    users = tmp_path / "passwd"
    users.write_text(Path("/etc/passwd").read_text() + _USER)
    mine = f'mount --bind "{users}" /etc/passwd && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mine, "sh"]
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("needs a root that can mount")
    more = '[sandbox]\nuser = "batchd-weather"\n'
    station = Station(tmp_path / "spool", model_server, model="steps-2", more=more)
    with station.serving(*prefix):
        station.drop("before.json")
        station.completed("before")
        assert (station.outbox / "before/001").stat().st_uid == 54321
        users.write_text(Path("/etc/passwd").read_text())
        asked = len(station.asked())
        station.drop(
            "during.json", json.dumps([{"first_prompt": f"{i}"} for i in range(9)]).encode()
        )
        until(lambda: station.logged("sandbox_trouble", "no user 'batchd-weather'"), station.text)
        time.sleep(2)
        assert len(station.asked()) == asked
        assert not (station.outbox / "during/summary.json").exists()
        assert "Traceback" not in station.text()
        (trouble,) = station.troubles()
        assert trouble["message"] == "[sandbox] user: there is no user 'batchd-weather'"
        assert trouble["mend"].startswith("name an ordinary user in `[sandbox] user`")
        with users.open("a") as file:
            file.write(_USER)
        station.completed("during", 9)
        assert station.logged("sandbox_trouble", "works again")
