"""How memory is looked at that the kernel keeps for commands,
and that nothing of it is left to us.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from pathlib import Path

from patience import PATIENCE_S, until

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox
from batchd.sandbox.network import queues
from batchd.sandbox.open_files import OpenFiles
from batchd.sandbox.process_table import ProcessTable

_SO_MEMINFO = 55
#: May hold more than is allowed, and holds nothing.
HOLDING = """python3 -c '
import socket, time
pairs = [socket.socketpair() for _ in range(300)]
time.sleep(300)'"""


def descriptors() -> set[str]:
    """Return what this process has open, the listing itself apart."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {line for line in found if "/fd" not in line}


def test_nothing_is_left_of_the_looks_into_sockets(tmp_path: Path) -> None:
    """A command's sockets are looked into, once they might hold too much;
    whenever it ends, no descriptor, task or process of that stays.
    """

    async def main() -> None:
        sandbox = Sandbox(SandboxPolicy(max_memory_bytes=64 << 20))
        with await sandbox.open(
            str(tmp_path / "001"), fresh=True, network=False, env={}, tmp=str(tmp_path / "tmp")
        ) as place:
            await place.shell("true", timeout_s=PATIENCE_S)
            before = descriptors()
            for step in range(12):
                ends = [place.shell(HOLDING, timeout_s=0.2 + step * 0.04 + n) for n in (0, 0.02)]
                assert [end.excess for end in await asyncio.gather(*ends)] == ["", ""]
            running = asyncio.ensure_future(place.shell(HOLDING, timeout_s=2 * PATIENCE_S))
            # Its output, its status, its end; and what shows its sockets.
            await asyncio.to_thread(until, lambda: len(_sockets(descriptors() - before)) == 1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert running.cancelled()
            # A thread that looked as it ended closes what it looked with.
            await asyncio.to_thread(until, lambda: descriptors() <= before)
            others = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            await asyncio.gather(*others)

    asyncio.run(main())


def _sockets(lines: set[str]) -> list[str]:
    return [line for line in lines if "socket:" in line]


def test_what_is_behind_descriptors_is_seen(tmp_path: Path) -> None:
    """Pipes once, however many ends; terminals by the end that opened them;
    events that were not read.
    """

    def seen() -> OpenFiles:
        return OpenFiles.by([ProcessTable.read().processes[os.getpid()]])

    before = seen()
    libc = ctypes.CDLL(None)
    opened = [*os.pipe(), *os.pipe(), *os.openpty(), *os.openpty(), libc.inotify_init()]
    try:
        libc.inotify_add_watch(opened[-1], os.fsencode(tmp_path), 0x100)  # IN_CREATE
        (tmp_path / "file").touch()
        after = seen()
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert len(after.pipes) == len(before.pipes) + 2
    assert after.terminals == before.terminals + 2
    assert after.queued > before.queued
    assert after.descriptors >= before.descriptors + len(opened) - 1
    assert after.kernel() > before.kernel() + 2 * (64 << 10)


def test_what_sockets_hold_is_known_to_the_byte() -> None:
    """As the sockets themselves report it, and never more than is expected beforehand."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:

        def held() -> tuple[int, int]:
            sockstat = Path("/proc/self/net/sockstat").read_text()
            return queues.held(netlink, 0), queues.at_most(sockstat)

        def is_counted() -> bool:
            near, far = socket.socketpair()
            with near, far:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                empty, _ = held()
                near.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        near.send(bytes(1 << 16))
                has = int.from_bytes(
                    near.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)[8:12], "little"
                )
                full, most = held()
                return most > full and abs(full - empty - has) < has // 8

        # Sockets of others on this machine come and go, and what they hold with them.
        until(is_counted)
