"""What is promised is on the disk first: a daemon's system calls, as strace saw them.

SIGKILL cannot show this, for the kernel keeps what a dead process has written;
only a power cut loses what was not synced.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from arena import CALLS, Arena, Model, tasks, until

pytestmark = [
    pytest.mark.in_turns,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="only root reads what a sealed process asks of the kernel"
    ),
]

_CALLS = (
    "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,"
    "mkdir,mkdirat,sendto,sendmsg,recvfrom,recvmsg"
)
_STRACE = (
    "strace",
    "-D",
    "-f",
    "-y",
    "-qq",
    "-s",
    "65536",  # messages that come together are read together
    "--seccomp-bpf",
    "-e",
    f"trace={_CALLS}",
)
_COUNT = 6

_WHOLE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+).*")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+).*")
_OPEN = re.compile(r"\d+<(.*?)>")
#: A path, behind the folder that it is relative to, if one is given.
_PATH = re.compile(r'(?:\d+<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_ADDRESS = re.compile(
    r'\[\\"(Ack|Granted|Record|Ask|Failed|Done)\\",\{(?:\\"ask\\":\{)?\\"ref\\":\{\\"batch\\":\\"(\w+)\\",\\"task\\":\\"(\w+)\\"\}'
)


@dataclass(frozen=True)
class Call:
    """A system call that succeeded: when it began and ended, by the order of strace's lines."""

    began: int
    ended: int
    thread: str
    name: str
    arguments: str

    @property
    def file(self) -> str:
        """The file that its descriptor, the first argument, stands for."""
        found = _OPEN.match(self.arguments)
        return found[1] if found else ""

    @property
    def paths(self) -> list[str]:
        """The paths among its arguments."""
        return [str(Path(folder, name)) for folder, name in _PATH.findall(self.arguments)]

    def messages(self, *kinds: str) -> list[tuple[str, str]]:
        """Return kind and task of those messages of the pool that it carries."""
        return [(k, task) for k, _, task in _ADDRESS.findall(self.arguments) if k in kinds]


def _parse(lines: list[str]) -> Iterator[Call]:
    """Yield the calls that succeeded, in the order of their ends."""
    begun: dict[str, Call] = {}
    for number, line in enumerate(lines):
        if found := _BEGUN.fullmatch(line):
            begun[found[1]] = Call(number, -1, *found.groups())
        elif found := _ENDED.fullmatch(line):
            call = begun.pop(found[1], None)  # it began before strace was there
            if call and int(found[4]) >= 0:
                yield replace(call, ended=number, arguments=call.arguments + found[3])
        elif (found := _WHOLE.fullmatch(line)) and int(found[4]) >= 0:
            yield Call(number, number, *found.groups()[:3])


class Trace:
    """All that a daemon, its workers and their threads asked of the kernel."""

    def __init__(self, text: str, spool: Path) -> None:
        self.calls = list(_parse(text.splitlines()))
        self.spool = str(spool)
        self.wal = f"{spool}/.batchd/batchd.db-wal"
        self.outbox = f"{spool}/outbox"

    def of(self, *names: str) -> list[Call]:
        """Return the calls of these names."""
        return [call for call in self.calls if call.name in names]

    def synced(self, path: str, after: int, before: int) -> bool:
        """Return whether a file was synced wholly between two moments."""
        syncs = (c for c in self.of("fsync", "fdatasync") if c.file == path)
        return any(after < c.began and c.ended < before for c in syncs)

    def written(self, path: str, after: int, before: int) -> list[Call]:
        """Return the writes to a file that fell between two moments."""
        writes = self.of("write", "writev", "pwrite64", "pwritev", "pwritev2")
        return [c for c in writes if c.file == path and after < c.began and c.ended < before]

    def committed(self, after: int, before: int) -> bool:
        """Return whether the store wrote and then synced its log between two moments."""
        writes = self.written(self.wal, after, before)
        return any(self.synced(self.wal, write.ended, before) for write in writes)


def _statuses(folder: Path) -> list[str]:
    found = sorted(folder.glob("[0-9]*.json"))
    return [json.loads(path.read_bytes())["status"] for path in found]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Run a batch under strace."""
    spool = tmp_path_factory.mktemp("traced")
    model = Model()
    pool = "[pool]\nprocesses = 2\nagents_per_process = 2\n"
    config = (
        f'[agent]\nmodel = "standin/steps-{CALLS}"\n[providers.standin]\nbase_url = "{model.base_url}"\n'
        f'[evaluation]\nby = "none"\n{pool}'
    )
    file = spool / "trace"
    place = Arena(spool, config, prefix=(*_STRACE, "-o", str(file)))
    try:
        place.start()
        until((place.folder / ".batchd/control.sock").exists, 60, place.tail)
        folder = place.drop("c", tasks(_COUNT))
        until((folder / "summary.json").exists, 60, place.tail)
        assert _statuses(folder) == ["completed"] * _COUNT, place.tail()
        place.stop()
        until(lambda: "exited" in file.read_text() or not place.processes(), 10, place.tail)
    finally:
        place.clear()
        model.stop()
    return Trace(file.read_text("utf-8", "replace"), place.folder)


def _asked(trace: Trace) -> dict[str, list[int]]:
    """Return when each task's messages came: sent by its worker, and then received by the daemon.

    A call that sends may be seen to end after the answer has been received; one that receives may
    end in the middle of a message.
    """
    asked = defaultdict(list)
    for call in trace.of("recvfrom", "recvmsg", "sendto", "sendmsg"):
        for _, task in call.messages("Record", "Ask", "Failed"):
            asked[task].append(call.ended if call.name.startswith("recv") else call.began)
    return asked


def test_every_acknowledgement_follows_a_sync_of_what_it_acknowledges(trace: Trace) -> None:
    """Between a worker's message and its Ack or Granted,
    the store's log was written and then synced.
    """
    asked = _asked(trace)
    answered = {"Ack": 0, "Granted": 0}
    for call in trace.of("sendto", "sendmsg"):
        for kind, task in call.messages("Ack", "Granted"):
            answered[kind] += 1
            last = max(moment for moment in asked[task] if moment < call.began)
            assert trace.committed(last, call.began), f"{kind} of {task}: {call}"
    assert answered["Granted"] == _COUNT * CALLS
    # One before each command, one for the end.
    assert answered["Ack"] == _COUNT * CALLS


def test_what_a_task_leaves_is_on_the_disk_before_its_end_is(trace: Trace) -> None:
    """A result names files: they and their folder are synced before it is stored, and published."""
    left = sorted(Path(trace.outbox).glob("c/*/notes.txt"))
    assert len(left) == _COUNT // 2
    for path in left:
        stored = max(_asked(trace)[path.parent.name])
        assert trace.synced(str(path), -1, stored)
        assert trace.synced(str(path.parent), -1, stored)


def _notified(trace: Trace, task: str) -> int:
    """Return when the daemon was notified of a task's end; the end of all for what is no task's."""
    done = (c for c in trace.of("sendto", "sendmsg") if ("Done", task) in c.messages("Done"))
    return next((c.began for c in done), trace.calls[-1].ended + 1)


def test_every_file_of_the_outbox_is_synced_before_and_its_folder_after_the_rename(
    trace: Trace,
) -> None:
    """What appears under its name is whole on the disk;
    its name is there before its end is reported.
    """
    renamed = 0
    for call in trace.of("rename", "renameat", "renameat2"):
        source, target = call.paths
        if not target.startswith(f"{trace.outbox}/c/"):
            continue  # the batch's folder has a test of its own
        renamed += 1
        if "/claimed/" not in source:  # its owner wrote that one
            last = max(w.ended for w in trace.written(source, -1, call.began))
            assert trace.synced(source, last, call.began), f"{target} was not synced"
        folder = str(Path(target).parent)
        notified = _notified(trace, Path(target).name.partition(".")[0])
        assert trace.synced(folder, call.ended, notified), f"{target}: its name was not on the disk"
    # The request, a transcript and a result for each task, all results, the report, the summary.
    assert renamed == 1 + 2 * _COUNT + 3


def test_a_claim_is_on_the_disk_before_the_store_knows_of_it(trace: Trace) -> None:
    """Both folders are synced before the batch is stored, and the file leaves only once it is."""
    claimed = f"{trace.spool}/.batchd/claimed"
    renames = [
        c for c in trace.of("rename", "renameat", "renameat2") if claimed in " ".join(c.paths)
    ]
    # The first one only shows that a rename leads there.
    _, claim, move = renames
    (write, *_) = trace.written(trace.wal, claim.ended, move.began)
    assert trace.synced(claimed, claim.ended, write.began)
    assert trace.synced(f"{trace.spool}/inbox", claim.ended, write.began)
    assert trace.committed(claim.ended, move.began)


def test_a_batchs_folder_is_on_the_disk_before_anything_in_it_is_reported(trace: Trace) -> None:
    """A synced file in a folder that a power cut takes away would be lost with it."""
    renames = trace.of("rename", "renameat", "renameat2")
    made = [c for c in renames if c.paths[1] == f"{trace.outbox}/c"]
    assert len(made) == 1, "it gets its name once, when it is reserved"
    first = min(c.began for c in trace.of("sendto", "sendmsg") if c.messages("Done"))
    assert trace.synced(trace.outbox, made[0].ended, first)
