"""Servers on this machine's loopback that report what came to them."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from patience import PATIENCE_S

_OK = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"


class Recorder:
    """Answers each head of a request that it sees on a connection,
    and keeps every byte; never closes first.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self._listener = socket.create_server((address, port))
        self.port: int = self._listener.getsockname()[1]
        #: What came, a connection each.
        self.received: list[bytearray] = []

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            kept = bytearray()
            self.received.append(kept)
            threading.Thread(target=self._talk, args=(client, kept), daemon=True).start()

    def _talk(self, client: socket.socket, kept: bytearray) -> None:
        answered = 0
        with client, contextlib.suppress(OSError):
            client.settimeout(PATIENCE_S)
            while data := client.recv(1 << 16):
                kept += data
                time.sleep(0.1)  # what follows a request has time to come, too
                heads = len(re.findall(rb"\r\n\r\n|\n\n", kept))
                client.sendall(_OK * (heads - answered))
                answered = heads


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server on loopback that talks with each client in a thread; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                client.settimeout(PATIENCE_S)
                talk(client)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = listener.accept()[0]
                    threading.Thread(target=one, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@contextlib.contextmanager
def name_server(answers: Callable[[int], str]) -> Iterator[list[float]]:
    """Answer questions for IPv4 addresses on 127.0.0.1:53,
    the nth with ``answers(n)``; when they came.
    """
    asked: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 53))

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    question, client = line.recvfrom(4096)
                    if not question:
                        return
                    end = question.index(b"\0", 12) + 5
                    kind = struct.unpack("!H", question[end - 4 : end - 2])[0]
                    record = b""
                    if kind == 1:
                        address = socket.inet_aton(answers(len(asked)))
                        asked.append(time.monotonic())
                        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + address
                    counts = struct.pack("!HHHHH", 0x8180, 1, bool(record), 0, 0)
                    line.sendto(question[:2] + counts + question[12:end] + record, client)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield asked
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", 53))
        thread.join(10)
