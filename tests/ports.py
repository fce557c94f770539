"""Ports for servers that somebody else starts later."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port that is free and stays so:
    it lies below those that the kernel gives a program which asks for any.
    """
    low = int(_RANGE.read_text().split()[0])
    for port in random.SystemRandom().sample(range(low // 2, low), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
