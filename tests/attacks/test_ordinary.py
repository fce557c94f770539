"""What is no attack works, through the same door, whatever layer is taken away:
a door that never opens stops everything.
"""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from attacking import Attack, living_in
from camp import Camp, does, says

pytestmark = pytest.mark.in_turns


def test_an_ordinary_command_works(attack: Attack) -> None:
    """It writes, reads, and returns its exit code."""
    assert attack.run("echo hello > x; cat x; exit 3")[0][:2] == (3, "hello\n")


def test_an_ordinary_task_works(camp: Camp) -> None:
    """From the file to the result."""
    task = {"first_prompt": "write", "check": "grep -x hello x"}
    with camp.answering({"write": [does("echo hello > x"), says("Done.")]}):
        result = camp.play([task])["001"]
    assert (result["status"], result["answer"]) == ("completed", "Done.")
    assert result["files"]["created"] == ["x"]


@pytest.mark.sampled(1)
@pytest.mark.skipif(
    os.environ.get("LAYER") == "everything", reason="without a sandbox there is no /task"
)
def test_links_that_bring_nothing_fail_no_round(camp: Camp) -> None:
    """Within the directory, to /usr, nowhere, round in circles, and what was there before."""
    links = {
        "b": "a.txt",
        "c": "/task/a.txt",
        "python": "/usr/bin/python3",
        "awk": "../usr/bin/awk",
        "d": "missing/../x",
        "e": "e",
        "there": "/tmp/cache",
    }
    place = camp.workplace(camp.folder / "work/made")
    (place / "there").symlink_to("/tmp/cache")
    made = "; ".join(f"ln -sfn {to} {name}" for name, to in links.items() if name != "there")
    task = {"first_prompt": "x", "check": "test -L e", "dir": str(place)}
    with camp.answering({"x": [does(f"touch a.txt; {made}"), says("Done.")]}):
        result = camp.play([task])["001"]
    assert (result["status"], result["links_out"]) == ("completed", {})


def test_the_tests_own_eyes_are_good() -> None:
    """A process in a namespace is found by it, whatever it is called:
    the tests above would see what stays.
    """
    command = ["unshare", "-r", "-p", "-f", "--kill-child", "sh", "-c", "readlink /proc/self/ns/pid_for_children; exec sleep 1000"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            namespace = process.stdout.readline().strip()
            while len(living_in(namespace)) != 1:  # what printed its name may not be gone yet
                assert process.poll() is None
        finally:
            process.kill()
    while living_in(namespace):
        time.sleep(0.02)
