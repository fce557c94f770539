"""A sandbox that takes long to be made, on a busy machine: nothing of the machine's is its own."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE_S

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox

pytestmark = pytest.mark.in_turns

#: Longer than the watch takes to look twice (microseconds).
_HELD_US = 1_000_000
#: Less than any disk holds, and than what others have in memory here.
_LIMIT, _MUCH = 16 << 20, 20 << 20


@pytest.fixture(autouse=True)
def _shared_memory() -> Iterator[None]:
    """Another program's shared memory."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(_MUCH))
        file.flush()
        yield


@pytest.mark.parametrize(
    "held",
    [
        pytest.param("mount,1", id="before its first mount"),
        pytest.param("mount,3", id="with a /tmp in the machine's own root"),
        pytest.param("pivot_root,1", id="before it leaves the machine's root"),
        pytest.param("pivot_root,2", id="before it has its root"),
    ],
)
def test_what_the_machine_holds_is_no_memory_of_a_sandbox(
    held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch looks at a sandbox while it is made, wherever that stops: the command runs,
    and what it then writes to its /tmp counts.
    """
    _slow_bwrap(tmp_path / "bin", *held.split(","))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    async def main() -> None:
        sandbox = Sandbox(SandboxPolicy(max_memory_bytes=_LIMIT))
        async with await sandbox.open(
            str(tmp_path / "001"), fresh=True, network=False, env={}
        ) as place:
            end = await place.shell("echo alive", timeout_s=PATIENCE_S)
            assert (end.exit_code, end.output, end.excess) == (0, "alive\n", "")
            assert end.seconds >= _HELD_US / 1e6
            filling = f"head -c {_MUCH} /dev/zero > /tmp/much; sleep 300"
            end = await place.shell(filling, timeout_s=PATIENCE_S)
            assert "in files in memory" in end.excess

    asyncio.run(main())


def _slow_bwrap(folder: Path, call: str, nth: str) -> None:
    """Make a bwrap that is held back as it asks the kernel for something, for the nth time."""
    strace, bwrap = shutil.which("strace"), shutil.which("bwrap")
    assert strace, "make strace"
    folder.mkdir()
    program = folder / "bwrap"
    # -D: bwrap stays a child of ours, as without strace.
    program.write_text(
        f"#!/bin/sh\nexec {strace} -D -f -qq -o {shlex.quote(str(folder / 'calls'))} -e trace={call}"
        f' -e inject={call}:delay_enter={_HELD_US}:when={nth} {bwrap} "$@"\n'
    )
    program.chmod(0o755)
