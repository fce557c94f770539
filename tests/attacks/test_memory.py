"""Memory that no process has, and that the kernel keeps for it,
is memory of the command too, or is not to be had.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import Attack, shell
from limiting import Limited, place

from batchd.sandbox.quantities import amount

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


def held(limited: Limited, how: str, much: int = MUCH) -> str:
    """Have memory filled in one way, which kills the command,
    and the next one lives; return where it is said to be.
    """
    over, after = limited.run(shell("uncounted.py", how, much, LONG), "echo alive", policy=LIMIT)
    assert over.killed
    assert over.exit_code == 137
    before, _, where = over.excess.partition(" of memory together (")
    assert before.startswith("its processes used ")
    where, _, allowed = where.partition("); ")
    assert allowed == f"[sandbox] max_memory_bytes allows {amount(200 * MB)}"
    assert (after.exit_code, after.output) == (0, "alive\n")
    return where


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("memory of sockets")
@pytest.mark.parametrize("ways", ["unix small", "parted backlog", "carried", "tcp orphans udp"])
def test_what_sockets_hold_counts(limited: Limited, ways: str) -> None:
    """Unread, also where who sent it is closed,
    where who is to get it is in a message itself, or was never accepted.
    """
    for how in ways.split():
        assert " in sockets" in held(limited, how)


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of sockets", "connections that are over")
def test_connections_that_are_over_hide_no_socket(limited: Limited) -> None:
    """The kernel lists them like sockets:
    each stood for one that is closed, which it does not list.
    """
    assert " in sockets" in held(limited, "hidden")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of sockets", "narrow sockets")
def test_no_socket_sends_more_ahead_than_is_counted(limited: Limited) -> None:
    """It may wish for more, and does not get it:
    what waits from a closed one counts as the most that one has.
    """
    assert " in sockets" in held(limited, "closed")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of names")
def test_names_and_attributes_of_files_in_memory_count(limited: Limited) -> None:
    """Files with nothing in them, and what is said about them."""
    for how in ("inodes", "attributes"):
        assert " in names and attributes of such files" in held(limited, how)


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("memory of the kernel")
def test_what_the_kernel_needs_for_a_command_counts(limited: Limited) -> None:
    """Tables for memory that was only read, and events that no one reads."""
    for how in ("tables", "watches"):
        assert " in the kernel, for what they have open and mapped" in held(limited, how)


@pytest.mark.long
@pytest.mark.stopped_by("memory of the kernel")
def test_what_many_processes_have_open_counts(limited: Limited) -> None:
    """A little for each, and as many as there may be."""
    for how in ("mappings", "memory_files", "events"):
        assert " in the kernel, for what they have open and mapped" in held(limited, how, 290)


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
    it is busy), connections that wait, pipes, forks, a file in memory: a hundred megabytes at the
    most.
    """
    (end,) = limited.run(shell("frugal.py", 8), policy=LIMIT)
    assert (end.exit_code, end.output, end.excess) == (0, "", "")
