"""``batchd worker``: a worker on another machine, a program that speaks frames over its standard
input and output.

What a machine of ``[pool] machines`` starts is a small parent. It carries bytes between them and
the worker, its child; it ends the worker where either of them closes, and has the last word, that
nothing of it runs any more. The worker ends with its parent, and by a timer of the kernel with its
lease: what one of the two no longer sees to, the other does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from batchd import processes, wire

#: The line in front of the first frame: whatever comes before it is a machine's greeting.
MAGIC = b"batchd-worker-1\n"
#: What a worker gets until the daemon has said Hello, in seconds.
_START_S = 60.0
_READ = 1 << 16
_PR_SET_CHILD_SUBREAPER = 36


def main(key_file: str = "") -> int:
    """Work until the daemon is gone or has no more tasks; return the exit code.

    SIGTERM has all tasks given back first; a second one ends the worker at once.

    ``key_file``: has the key of the stream, and is removed; empty: who carries it may read it.
    """
    processes.seal()  # it will hold keys
    opened, sealed = _as_it_is, _as_it_is
    if key_file:
        from batchd.pool.sealed_stream import SealedStream  # the others do without

        try:
            stream = SealedStream(Path(key_file).read_bytes(), daemon=False)
            Path(key_file).unlink()
        except OSError as error:
            shared = Path(key_file).parents[1]
            print(f"{shared} is not the daemon's: it is not shared ({error})", file=sys.stderr)
            return 3
        opened, sealed = stream.open, stream.seal
    # What anything prints is no frame.
    coming, going = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if not worker:
        for end in (ours.detach(), coming, going):
            os.close(end)
        _be_worker(theirs, parent)
    theirs.close()
    processes.forget(())
    pidfd = os.pidfd_open(worker)
    _forward_signals(pidfd)
    _write(going, sealed(MAGIC))
    up = threading.Thread(target=_carry_up, args=(ours, going, sealed, pidfd))
    up.start()
    alone = threading.Event()
    args = coming, ours, opened, pidfd, alone
    down = threading.Thread(target=_carry_down, args=args, daemon=True)
    down.start()
    ended = os.waitstatus_to_exitcode(_buried(worker))
    up.join()  # all that it sent is on its way
    with contextlib.suppress(OSError):
        _write(going, sealed(wire.pack(wire.Parted(died=ended < 0))))
    if ended < 0 and not alone.is_set():
        by = signal.Signals(-ended).name
        print(f"batchd worker: {by} ended it: its lease, or want of memory", file=sys.stderr)
    # Not by exit: the other thread waits for what the daemon may never send.
    os._exit(ended if ended >= 0 else 3)


def _forward_signals(worker: int) -> None:
    """Have the worker give its tasks back at the first signal, and end it at the second."""
    asked = False

    def forward(_number: int, _frame: object) -> None:
        nonlocal asked
        _signal(worker, signal.SIGKILL if asked else signal.SIGTERM)
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)


def _as_it_is(data: bytes) -> bytes:
    return data


def _carry_down(
    coming: int,
    ours: socket.socket,
    opened: Callable[[bytes], bytes],
    worker: int,
    alone: threading.Event,
) -> None:
    """Carry what the daemon says; without it the worker is nobody's, which ``alone`` notes."""
    with contextlib.suppress(OSError):
        while data := os.read(coming, _READ):
            ours.sendall(opened(data))
    alone.set()
    _signal(worker, signal.SIGKILL)


def _carry_up(
    ours: socket.socket, going: int, sealed: Callable[[bytes], bytes], worker: int
) -> None:
    """Carry what the worker says, to its end."""
    try:
        while data := ours.recv(_READ):
            _write(going, sealed(data))
    except OSError:
        _signal(worker, signal.SIGKILL)


def _signal(pidfd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _buried(worker: int) -> int:
    """Return how the worker ended, once nothing runs any more that it has started: without it,
    that is this process's own.
    """
    status = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, how = os.wait()
            if pid == worker:
                status = how
    return status


def _be_worker(sock: socket.socket, parent: int) -> NoReturn:
    """Work until the daemon, the parent or the lease ends; and end, whatever is wrong."""
    ended = 3
    try:
        os.setsid()
        processes.end_with(str(parent))
        # The parent, which lives as long, does without.
        from batchd.agent.loop import run
        from batchd.pool.here import Here
        from batchd.pool.lease import Deadline, Lease
        from batchd.pool.worker import Worker

        worker = Worker(run, Lease(_START_S, Deadline().set), here=Here({**os.environ}))
        processes.forget(())

        async def work() -> int:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, worker.leave, "its machine asked it to end")
            return await worker.work(lambda channel: channel.attach(sock))

        ended = asyncio.run(work())
    except Exception:  # noqa: BLE001 (its parent, whose stack this is, must not go on here)
        traceback.print_exc()
    finally:
        os._exit(ended)


if __name__ == "__main__":
    sys.exit(main())
