"""A task's /tmp in a daemon's hands, and its checks': kept over a crash or not,
gone with the task, however that ends; and what passes a limit is reported.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from loglines import logged

from batchd.agent import tools
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

#: Is interrupted the first time, and passes where it finds what it left then in the task's /tmp.
TWICE = "if [ -e /tmp/seen ]; then cat /tmp/seen > kept; else echo x > /tmp/seen; touch started; sleep 60; fi"


def _rooms(spool: Spool) -> list[str]:
    folder = spool.folder / ".batchd" / "tmp"
    return os.listdir(folder) if folder.exists() else []


def _started(spool: Spool, check: str = TWICE, where: str = "task") -> Path:
    """Submit a task, and wait until its check runs; return its directory."""
    task = {"first_prompt": "x", "check": check, "check_in": where}
    spool.batchd("submit", spool.write("batch.json", [task]))
    folder = spool.folder / "outbox/batch/001"
    spool.eventually((folder / "started").exists)
    return folder


def test_it_is_kept_over_a_crash_and_goes_with_the_task(spool: Spool) -> None:
    """The next daemon's commands find what was left;
    then it is removed, and so is what tasks long over have left.
    """
    with spool.serving() as daemon:
        folder = _started(spool)
        assert _rooms(spool) == ["batch.001"]
        daemon.kill()
        daemon.wait()
    left = spool.folder / ".batchd/tmp/long-gone.001/a/b"
    left.mkdir(parents=True)
    left.parent.chmod(0)
    with spool.serving():
        spool.eventually((spool.folder / "outbox/batch/summary.json").exists)
        assert (folder / "kept").read_text() == "x\n"
        assert spool.result("batch", "001")["status"] == "completed"
        spool.eventually(lambda: not _rooms(spool))


def test_a_checks_own_is_empty_after_a_crash_and_goes_with_the_check(spool: Spool) -> None:
    """What an interrupted check has left is not found by the next one,
    and is swept out at the start.
    """
    check = "ls -A /tmp > seen; if [ -e started ]; then exit; fi; touch /tmp/x started; sleep 60"
    with spool.serving() as daemon:
        folder = _started(spool, check, "apart")
        assert sorted(_rooms(spool)) == ["batch.001", "batch.001.check"]
        daemon.kill()
        daemon.wait()
    with spool.serving():
        spool.eventually((spool.folder / "outbox/batch/summary.json").exists)
        assert (folder / "seen").read_text() == ""
        assert spool.result("batch", "001")["status"] == "completed"
        spool.eventually(lambda: not _rooms(spool))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("running", [True, False], ids=["daemon", "offline"])
def test_it_goes_with_a_cancelled_task(spool: Spool, running: bool) -> None:
    """Whether a daemon runs or not, a cancelled task leaves nothing there."""
    with spool.serving() as daemon:
        _started(spool)
        if running:
            spool.batchd("cancel", "batch")
            spool.eventually(lambda: not _rooms(spool))
            return
        daemon.kill()
        daemon.wait()
    assert _rooms(spool) == ["batch.001"]
    assert spool.batchd("cancel", "batch").returncode == 0
    assert not _rooms(spool)


def test_a_run_has_it_too_and_leaves_nothing(spool: Spool) -> None:
    """``batchd run`` keeps /tmp for a task as well, deep trees
    and closed folders included, and cleans up after itself.
    """
    deep = "import os\nfor _ in range(3100):\n    os.mkdir('d'); os.chdir('d')\nos.mkdir('x', 0)"
    check = f'if [ -e /tmp/seen ]; then exit 0; fi; touch /tmp/seen; cd /tmp; python3 -c "{deep}"; exit 1'
    file = spool.write("batch.json", [{"first_prompt": "x", "check": check, "check_in": "task"}])
    done = spool.batchd("run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((spool.folder / ".batchd/tmp").iterdir()) == []


def test_a_killed_command_is_reported_to_the_model_and_in_the_log(spool: Spool) -> None:
    """What a command used, and which key of the configuration says how much it may,
    stands in the feedback and in the log.
    """
    config = spool.folder / "config.toml"
    config.write_text(config.read_text() + "\n[sandbox]\nmax_memory_bytes = 100000000\n")
    take = "python3 -c 'x = bytearray(60 << 20); import time; time.sleep(30)'"
    check = f"if [ -e tried ]; then exit 0; fi; touch tried; {take} & {take} & wait"
    with spool.serving():
        spool.batchd(
            "submit", spool.write("batch.json", [{"first_prompt": "x", "check": check}]), "--wait"
        )
    assert spool.result("batch", "001")["status"] == "completed"
    (line,) = logged(spool.folder / "daemon.log", "limit_passed")
    assert line["level"] == "warning"
    assert line["task"] == "001"
    assert "of memory together; [sandbox] max_memory_bytes allows 95.37 MiB" in line["message"]
    transcript = (spool.folder / "outbox/batch/001.jsonl").read_text()
    assert "max_memory_bytes allows 95.37 MiB" in transcript


def test_the_model_learns_why_its_command_was_killed(tmp_path: Path) -> None:
    """A tool's output says that all of it was killed,
    what it used and which key allows how much.
    """
    tmp_path.chmod(0o755)

    async def main() -> tools.ToolOutput:
        sandbox = Sandbox(SandboxPolicy(max_cpu_s=0.3))
        opening = sandbox.open(str(tmp_path / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            request = tools.ToolRequest("shell", {"command": "echo begun; while :; do :; done"})
            return await tools.run(request, place, 20.0)

    output = asyncio.run(main())
    assert (output.outcome, output.exit_code) == ("killed", 137)
    begin = "begun\n[killed, with everything that it had started: its processes took"
    assert output.text.startswith(begin)
    assert "[sandbox] max_cpu_s allows 0.3 s" in output.text


def test_a_full_task_does_not_empty_the_file_that_it_would_edit(tmp_path: Path) -> None:
    """Where nothing may be written, what there was stays as it is, and the model learns why."""
    tmp_path.chmod(0o755)
    fill = "for i in 1 2 3; do head -c 10000000 /dev/zero > f$i; done; sleep 10"

    async def main() -> list[tools.ToolOutput]:
        sandbox = Sandbox(SandboxPolicy(max_disk_bytes=20 << 20))
        opening = sandbox.open(str(tmp_path / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            wanted = (
                ("write_file", {"path": "kept", "content": "old"}),
                ("shell", {"command": fill}),
                ("edit_file", {"path": "kept", "old": "old", "new": "new"}),
                ("write_file", {"path": "kept", "content": "new"}),
            )
            return [await tools.run(tools.ToolRequest(*one), place, 20.0) for one in wanted]

    _, filled, *refused = asyncio.run(main())
    assert filled.outcome == "killed"
    assert (tmp_path / "001/kept").read_text() == "old"
    for output in refused:
        assert output.exit_code != 0
        assert "files can be deleted, not written" in output.text
