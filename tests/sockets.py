"""Sockets at paths that are longer than an address can be, which has 107 bytes."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def bind(sock: socket.socket, path: Path) -> None:
    """Bind a socket to a path, however long."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
