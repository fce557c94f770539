"""The protocol of systemd: the daemon is ready, alive, reloading, stopping."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping


class SystemdNotifier:
    """Sends sd_notify(3); without systemd, nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "")
        #: Seconds between two signs of life; 0: none is wanted.
        self.every_s = int(microseconds) / 2e6 if watched and microseconds.isdigit() else 0.0

    def ready(self) -> None:
        """Say that the daemon is up, or has reloaded."""
        self._send("READY=1")

    async def feed(self) -> None:
        """Feed the watchdog for ever: nothing else is waited for here. Only the main loop may."""
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.every_s)

    def reloading(self) -> None:
        """Say that the configuration is read again; ``ready`` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Say that the daemon drains."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
            except OSError:
                return  # systemd is not there, or too busy: nothing depends on it
