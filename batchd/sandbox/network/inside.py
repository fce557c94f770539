"""Sockets inside the network of a sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from batchd.errors import SandboxError
from batchd.sandbox import launch

#: Where commands find the proxy, on their own loopback: the port that such servers have by custom.
PORT = 3128
_HELPER = str(Path(__file__).with_name("helper.py"))
_PATIENCE_S = 20.0
_MOST_SAID = 4096


async def listening(process: int, number: int) -> socket.socket:
    """Return a socket that listens on the loopback of the network ``number``,
    in which ``process`` lives.

    Raises ``OSError``, and ``SandboxError`` where that is not possible here.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            words = (_HELPER, str(process), str(number), str(PORT))
            helper = launch.helper((sys.executable, "-I", "-S", *words), theirs.fileno())
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await helper.wait()
        except TimeoutError:
            raise SandboxError("the helper that enters a command's network hangs") from None
        finally:
            await helper.end()
        ours.setblocking(False)
        return _handed(ours)


def _handed(line: socket.socket) -> socket.socket:
    """Return the socket that the helper has handed out.

    Raises ``SandboxError`` with what it said instead.
    """
    try:
        said, descriptors, _, _ = socket.recv_fds(line, _MOST_SAID, 1)
    except BlockingIOError:
        said, descriptors = b"", []
    if not descriptors:
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise SandboxError(f"the network of a command cannot be entered: {last or 'no answer'}")
    os.set_inheritable(descriptors[0], False)
    made = socket.socket(fileno=descriptors[0])
    made.setblocking(False)
    return made
