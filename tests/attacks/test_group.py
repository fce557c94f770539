"""What a member of the group tries by the socket that it may use:
orders, others' work, and all of the daemon's room.

No command of a task reaches that socket: ``test_neighbours``,
``test_system`` and ``test_rooms`` have it among their doors.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import pytest
from camp import Camp, does

from batchd import control

#: More connections than the daemon has room for.
_CROWD = 300
_SECRET = "hush-hush-4711"


@pytest.fixture
def group(camp: Camp) -> Camp:
    """A spool whose inbox a group may write."""
    (camp.folder / "inbox").chmod(0o3770)
    return camp


def _line(camp: Camp) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(camp.folder / ".batchd-group/control.sock"))
    return line


def _said(camp: Camp, **asked: Any) -> str:
    """Return what the daemon answers to a question."""
    with _line(camp) as line, line.makefile("rb") as stream:
        line.sendall(json.dumps(asked).encode() + b"\n")
        return stream.readline().decode()


def _busy(camp: Camp) -> None:
    """Have a task be at work on a command of its model's."""
    work = camp.write("work.json", [{"first_prompt": "work"}])
    assert camp.batchd("submit", work).returncode == 0
    state = camp.folder / ".batchd"
    camp.eventually(lambda: _SECRET in json.dumps(control.request(state, "status")))


_TALK = {"work": [does(f"sleep 600 # {_SECRET}")]}


@pytest.mark.stopped_by("group orders")
def test_a_member_gives_no_order(group: Camp) -> None:
    """What another dropped is not ended, held or hurried, and no limit is lifted."""
    with group.answering(_TALK):
        _busy(group)
        for order in (
            {"verb": "tune", "changes": {"sandbox.backend": "none"}},
            {"verb": "pause", "scope": "all"},
            {"verb": "priority", "target": "work", "priority": 9},
            {"verb": "cancel", "target": "work"},
        ):
            assert '"ok": false' in _said(group, **order), order
        assert "running" in group.batchd("status", "work/001").stdout
        assert group.batchd("tune").stdout.startswith("Nothing is changed")
        group.batchd("cancel", "work")


@pytest.mark.stopped_by("group discretion")
def test_a_member_sees_nothing_of_others_work(group: Camp) -> None:
    """What a task runs, and what it was asked, is in no answer."""
    with group.answering(_TALK):
        _busy(group)
        for question in ({"last": 50}, {"batch": "work"}, {}):
            answer = _said(group, verb="status", **question)
            assert '"ok": true' in answer
            assert _SECRET not in answer
        group.batchd("cancel", "work")


@pytest.mark.stopped_by("group room")
def test_a_crowd_of_members_holds_up_only_itself(group: Camp) -> None:
    """Connections that say nothing, half a line, or take no answer:
    few are let in, and the daemon goes on with its work.
    """
    with group.answering({"work": [does("true")]}), contextlib.ExitStack() as stack:
        let_in = 0
        with contextlib.suppress(BlockingIOError):
            for number in range(_CROWD):
                line = stack.enter_context(socket.socket(socket.AF_UNIX))
                line.setblocking(False)
                line.connect(str(group.folder / ".batchd-group/control.sock"))
                let_in += 1
                with contextlib.suppress(OSError):  # it is refused already
                    line.send(
                        (b"", b'{"verb": "sta', b'{"verb": "status", "last": 9}\n' * 500)[
                            number % 3
                        ]
                    )
        assert group.batchd("status").returncode == 0
        done = group.batchd(
            "submit", group.write("work.json", [{"first_prompt": "work"}]), "--wait"
        )
        assert done.returncode == 0, done.stderr
        assert let_in < _CROWD
