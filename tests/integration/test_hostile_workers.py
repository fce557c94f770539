"""A worker of a machine that is not one of ours: it may spoil its task, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from loglines import logged
from machines import command, spool_with
from patience import until
from pools import drop, nodes, running, summary

from tests.conftest import Spool

pytestmark = [
    pytest.mark.in_turns,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces"),
]

_STRANGE = str(Path(__file__).parents[1] / "strange_worker.py")


def strange(folder: Path, base_url: str, what: str) -> Spool:
    """Return a spool whose worker on `strange` does ``what``."""
    argv = ["env", f"PYTHONPATH={Path(_STRANGE).parents[1]}", sys.executable, _STRANGE, what]
    return spool_with(folder, base_url, commands=[("strange", [*argv, str(folder / "said")])])


def with_another(spool: Spool, base_url: str) -> None:
    """Bring one of ours, and take the strange one away."""
    spool_with(spool.folder, base_url, commands=[("node7", command(spool.folder, "node7"))])


@pytest.mark.parametrize("lie", ["no event", "a huge frame", "no frame"])
def test_a_worker_that_says_what_no_worker_says_is_sent_away(
    tmp_path: Path, model_server: str, lie: str
) -> None:
    """The daemon goes on, and another worker does its task."""
    spool = strange(tmp_path, model_server, lie)
    with spool.serving() as daemon:
        spool.eventually(lambda: "strange" in nodes(spool))
        drop(spool, 1)
        spool.eventually(lambda: logged(spool.folder / "daemon.log", "worker_died"))
        assert daemon.poll() is None
        with_another(spool, model_server)
        daemon.send_signal(1)
        assert summary(spool)["counts"]["completed"] == 1


def test_one_that_speaks_for_others_is_not_heard(tmp_path: Path, model_server: str) -> None:
    """An attempt that is not its own is refused."""
    spool = strange(tmp_path, model_server, "another's task")
    with spool.serving():
        drop(spool, 1)
        until((tmp_path / "said").exists)
        until(lambda: (tmp_path / "said").read_text())
        assert json.loads((tmp_path / "said").read_text()) == ["b", 2]
        assert running(spool)


def test_no_key_of_the_daemons_is_in_what_a_machine_is_sent(
    tmp_path: Path, model_server: str
) -> None:
    """Not at its start, not after a reload, not with a task: it has its own."""
    spool = strange(tmp_path, model_server, "keeps all")
    (tmp_path / "key").write_text("sk-canary-0123456789\n")
    config = tmp_path / "config.toml"
    text = config.read_text().replace("[models.", 'api_key_file = "key"\n[models.', 1)
    inline = f'[providers.inline]\nbase_url = "{model_server}"\n[providers.inline.headers]\n'
    config.write_text(f'{text}{inline}"X-Api-Key" = "hd-canary-0123456789"\n')
    with spool.serving() as daemon:
        drop(spool, 1, first_prompt="seen by the worker")
        until((tmp_path / "said").exists)
        daemon.send_signal(1)
        until(lambda: b"seen by the worker" in (tmp_path / "said").read_bytes())
        spool.eventually(lambda: logged(spool.folder / "daemon.log", "config_reloaded"))
    sent = (tmp_path / "said").read_bytes()
    assert b'"api_key":""' in sent
    assert b"canary" not in sent


def test_a_machine_with_other_files_gets_no_task(tmp_path: Path, model_server: str) -> None:
    """Status names both versions, and what helps."""
    spool = strange(tmp_path, model_server, "other files")
    with spool.serving():
        spool.eventually(lambda: "of other files" in spool.batchd("status").stdout)
        shown = " ".join(spool.batchd("status").stdout.split())
        assert "install the daemon's there" in shown


def test_a_machine_with_another_clock_gets_no_task(tmp_path: Path, model_server: str) -> None:
    """Money is booked by the daemon's, and a lease counts on both sides."""
    spool = strange(tmp_path, model_server, "another clock")
    with spool.serving():
        spool.eventually(lambda: "its clock is off by +90 s" in spool.batchd("status").stdout)


def test_who_does_not_read_is_not_read(tmp_path: Path, model_server: str) -> None:
    """What a worker makes the daemon hold by what it never reads is bounded,
    and its lease is over in the end.
    """
    spool = strange(tmp_path, model_server, "reads nothing")
    with spool.serving() as daemon:
        statm = Path(f"/proc/{daemon.pid}/statm")
        spool.eventually(lambda: "strange" in nodes(spool))
        before = int(statm.read_text().split()[1])
        drop(spool, 1)
        spool.eventually(lambda: logged(spool.folder / "daemon.log", "worker_died"))
        grown = (int(statm.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
        assert int((tmp_path / "said").read_text()) < 64 << 20
        assert grown < 32 << 20
    (died, *_) = logged(spool.folder / "daemon.log", "worker_died")
    assert "no sign of life" in died["cause"]
