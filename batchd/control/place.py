"""The address of the control socket, reached however long its path is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: The socket's file in the state directory.
NAME = "control.sock"
#: What a socket's address holds, with the zero at its end.
_ADDRESS_BYTES = 108


@contextlib.contextmanager
def address(state: Path) -> Iterator[str]:
    """Give a path to the socket, its own if that is short:
    108 bytes are all that a socket's address holds.

    By its own path a search for sockets below some folder sees at once that it lies elsewhere.
    """
    plain = str(state / NAME)
    if state.is_absolute() and len(os.fsencode(plain)) < _ADDRESS_BYTES:
        yield plain
        return
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)
