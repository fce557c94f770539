"""The worker on another machine, as its keeper starts it:
``NODE PIPE KEEPER CACHE BYTES GPUS LABEL…``.

On its standard input are two lines: the ticket, and the digest of the keeper's parting word.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batchd import sealing
from batchd.agent import run
from batchd.errors import BatchdError
from batchd.pool.cache import Cache
from batchd.pool.joining import dialling, keeper, ticket
from batchd.pool.lease import Lease
from batchd.pool.worker import Worker
from batchd.records import Has

_PR_SET_PDEATHSIG = 1


def main(node: str, pipe: int, parent: int, place: str, most: int, *, has: Has) -> int:
    """Work until the daemon is gone, the lease is over, or SIGTERM has all tasks given back."""
    sealing.seal()  # it will hold keys
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 3  # its keeper died before that
    os.set_inheritable(pipe, False)
    sealing.forget(())
    try:
        way, parting = ticket.parse(sys.stdin.readline()), sys.stdin.readline().strip()
        made = partial(Cache, Path(place), most)
        return asyncio.run(_work(way, node, parting, pipe, made, has=has))
    except BatchdError as error:
        sys.stderr.write(f"batchd worker: {error}\n")
        return error.exit_code


async def _work(
    way: ticket.Ticket,
    node: str,
    parting: str,
    pipe: int,
    cache: Callable[[], Cache],
    *,
    has: Has,
) -> int:
    def report(until: float) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(pipe, keeper.END.pack(until))

    worker = Worker(run, Lease(keeper.START_S, report), cache)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.leave, "its machine asked it to end")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what its keeper held back until now
    return await worker.work(lambda channel: dialling.join(way, node, has, parting, channel))


if __name__ == "__main__":
    name, number, keeper_pid, folder, most_bytes, gpus, *labels = sys.argv[1:]
    there = Has(int(gpus), tuple(labels))
    sys.exit(main(name, int(number), int(keeper_pid), folder, int(most_bytes), has=there))
