"""Memory that no process has, and that the kernel keeps for it:
it is the command's too, or is not to be had, or has a bound of the kernel's own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import Attack, living_in, shell
from camp import Camp, does, says
from limiting import Limited, place
from patience import until

from batchd.words import amount

MB = 1 << 20
#: Much more than is allowed, and so long it is kept,
#: many times as long as between two looks (seconds).
MUCH, LONG = 1000, 100
LIMIT = {"max_memory_bytes": 200 * MB}

pytestmark = [pytest.mark.in_turns, pytest.mark.usefixtures("by_turns")]


@pytest.fixture
def limited(attack: Attack, source: Path) -> Iterator[Limited]:
    """Commands of one task of a batchd that runs as root or as an ordinary user."""
    with place(attack, source) as limited:
        yield limited


def ends(limited: Limited, ways: str, much: int = MUCH) -> None:
    """Have memory filled in some ways: each command is killed for it, and the next one lives."""
    for how in ways.split():
        over, after = limited.run(
            shell("uncounted.py", how, much, LONG), "echo alive", policy=LIMIT
        )
        assert (over.exit_code, over.killed) == (137, True)
        assert over.excess.startswith("its processes used ")
        assert over.excess.endswith(f"; [sandbox] max_memory_bytes allows {amount(200 * MB)}")
        assert (after.exit_code, after.output) == (0, "alive\n")


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("memory of sockets")
@pytest.mark.parametrize("ways", ["unix small", "parted backlog", "carried"])
def test_sockets_count(limited: Limited, ways: str) -> None:
    """By their number: also those that are closed and unread,
    in a message themselves, or were never accepted.
    """
    ends(limited, ways)


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of sockets", "narrow sockets")
def test_no_socket_sends_more_ahead_than_twice_what_it_counts_for(limited: Limited) -> None:
    """It may wish for more, and does not get it."""
    ends(limited, "closed")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("lines of maps")
def test_no_name_of_a_file_blinds_who_counts(limited: Limited) -> None:
    """As one with a line break in it does not, of a file that is mapped and deleted."""
    mapped = """
import mmap, os, time
file = open("x\\r\\v\\f\\x1c\\x85q", "wb+")
file.write(bytes(4096)); file.flush()
kept = mmap.mmap(file.fileno(), 4096)
os.unlink(file.name); os.fork() or os.fork()
taken = b"x" * (120 << 20); time.sleep(60)
"""
    over, after = limited.run(f"python3 -c '{mapped}'", "echo alive", policy=LIMIT)
    assert (over.exit_code, over.killed) == (137, True)
    assert over.excess.startswith("its processes used ")
    assert (after.exit_code, after.output) == (0, "alive\n")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of names")
def test_names_and_attributes_of_files_in_memory_count(limited: Limited) -> None:
    """Files with nothing in them, and what is said about them."""
    ends(limited, "inodes attributes")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of the kernel")
def test_tables_of_memory_count(limited: Limited) -> None:
    """Of memory that was only read."""
    ends(limited, "tables")


@pytest.mark.long
@pytest.mark.stopped_by("memory of the kernel")
def test_what_many_processes_have_open_counts(limited: Limited) -> None:
    """A little for each, and as many as there may be."""
    ends(limited, "mappings memory_files events", 290)


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("orphans")
def test_what_the_kernel_alone_bounds_harms_no_other_and_is_given_back(camp: Camp) -> None:
    """What waits in sockets of TCP and UDP and in pipes, events that no one reads, segments, locks:
    a gigabyte of it beside another task, which completes. It is free again once a command ends,
    on a network of its own or the machine's; and nobody holds it any more once the daemon is
    killed, whose next one ends both batches.
    """
    ways = ("tcp", "orphans", "udp", "watches", "pipes", "little_segments", "locks")
    begun = " ".join(f"{shell('uncounted.py', how, 250, LONG * 100)} > {how} &" for how in ways)
    hold = does(f"test -e tcp || {{ readlink /proc/self/ns/pid > namespace; {begun} wait; }}")
    filled = begun + (
        f" for how in {' '.join(ways)}; do until grep -q MB $how; do sleep 0.1; done; done;"
        " cat /proc/net/sockstat > during; kill $(jobs -p); wait"
    )
    place = camp.folder / "outbox/batch/001"
    talks = {
        "fill": [does(filled), says("Done.")],
        "hold": [hold, says("Done.")],
        "work": [does("echo alive > x"), says("Done.")],
    }
    before = _in_sockets(Path("/proc/net/sockstat"))
    with camp.answering(talks, "[sandbox]\nnetwork = true\n"):
        for network in (False, True):
            name = f"filled-{network}"
            camp.play([{"first_prompt": "fill", "network": network}], name)
            during = _in_sockets(camp.folder / "outbox" / name / "001/during")
            assert during > before + 400 * MB
            until(lambda: _in_sockets(Path("/proc/net/sockstat")) < before + 40 * MB)
        camp.batchd("submit", camp.write("batch.json", [{"first_prompt": "hold"}]))
        for how in ways:
            camp.eventually(lambda: " MB" in _said(place / how))  # noqa: B023 (asked at once)
        other = camp.play([{"first_prompt": "work", "check": "grep alive x"}], "other")["001"]
        assert other["status"] == "completed"
        namespace = (place / "namespace").read_text().strip()
        assert len(living_in(namespace)) > len(ways)
        os.kill(json.loads(camp.batchd("status", "--json").stdout)["daemon"]["pid"], signal.SIGKILL)
        until(lambda: living_in(namespace) == [])
        camp.eventually(lambda: not camp.answers())
        with camp.serving():
            camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
    assert camp.result("batch", "001")["status"] == "completed"
    assert camp.result("other", "001") == other


def _in_sockets(path: Path) -> int:
    """Return what waits in all sockets of TCP and UDP of the machine."""
    return sum(map(int, re.findall(r" mem (\d+)", path.read_text()))) * os.sysconf("SC_PAGE_SIZE")


def _said(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of files")
def test_a_tmp_in_memory_counts(attack: Attack) -> None:
    """Where commands have no /tmp that lasts: what lies there is in memory."""
    command = f"head -c {250 * MB} /dev/zero > /tmp/file; sleep {LONG}"
    [(exit_code, _, _, _)] = attack.run(command, policy={**LIMIT, "max_file_bytes": 300 * MB})
    assert exit_code == 137


def refused(limited: Limited, how: str) -> str:
    """Try to have memory filled in one way, of which there is none; return why."""
    (end,) = limited.run(shell("uncounted.py", how, 400, 0), policy=LIMIT)
    assert (end.exit_code, end.excess) == (0, "")
    had, _, why = end.output.strip().partition(" MB ")
    assert had == "0"
    return why


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("system v")
@pytest.mark.parametrize("how", ["segments", "messages", "semaphores"])
def test_no_memory_is_had_by_objects_that_belong_to_no_process(limited: Limited, how: str) -> None:
    """Those of System V: shared memory, queues of messages, sets of semaphores."""
    wanted = errno.EINVAL if how == "segments" else errno.ENOSYS
    assert os.strerror(wanted) in refused(limited, how)


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("by reference")
@pytest.mark.parametrize("how", ["spliced", "sent", "lent"])
def test_no_memory_is_held_by_reference(limited: Limited, how: str) -> None:
    """A few bytes in a pipe or a socket would keep two megabytes
    of a file that is gone, or of a process that gave them back.
    """
    assert os.strerror(errno.EINVAL) in refused(limited, how)


@pytest.mark.stopped_by("attributes")
def test_no_long_list_says_who_may_do_what(limited: Limited) -> None:
    """It would be kept in memory with a file of /dev/shm, and nothing there accounts for it."""
    assert os.strerror(errno.EOPNOTSUPP) in refused(limited, "lists")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("fair sockets")
def test_a_frugal_command_lives(limited: Limited) -> None:
    """Hundreds of sockets, unread messages of closed ones (as of a program's many children, while
    it is busy), connections that wait, pipes, forks, a file in memory: they count for little.
    """
    (end,) = limited.run(shell("frugal.py", 8), policy={"max_memory_bytes": 400 * MB})
    assert (end.exit_code, end.output, end.excess) == (0, "", "")
