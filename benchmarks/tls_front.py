"""A front that speaks TLS before the stand-in server, as a process of its own:
``tls_front.py CERTIFICATE KEY PORT``.

It prints its port, then, each time that it gets a line,
how many connections it has taken for calls since the line before. One that begins with a GET is for
none: the daemon asks for the list of models over a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


async def main(certificate: str, key: str, port: int) -> None:
    """Serve until input ends."""
    taken = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        first = await reader.read(1 << 16)
        taken += not first.startswith(b"GET ")
        behind = await asyncio.open_connection("127.0.0.1", port)
        behind[1].write(first)
        await asyncio.gather(_carry(reader, behind[1]), _carry(behind[0], writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(taken, flush=True)
            taken = 0


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
