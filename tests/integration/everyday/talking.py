"""Serves and asks: TCP and Unix, whole files, a log by datagrams,
subprocesses, and letters from who is gone.
"""

import asyncio
import logging.handlers
import os
import shutil
import socket
import threading
import time

SIZE = 3_000_000


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what came."""
    writer.write(await reader.readexactly(50_000))
    await writer.drain()
    writer.close()


async def answered(port: int | None) -> int:
    """Ask, over TCP or a Unix socket."""
    there = (
        asyncio.open_connection("127.0.0.1", port)
        if port
        else asyncio.open_unix_connection("/tmp/s")
    )
    reader, writer = await there
    writer.write(bytes(50_000))
    answer = await reader.readexactly(50_000)
    writer.close()
    await writer.wait_closed()
    return len(answer)


async def talk() -> None:
    """Thirty connections at once of each kind, and ten processes."""
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert sum(await asyncio.gather(*(answered(port) for _ in range(30)))) == 1_500_000
    async with await asyncio.start_unix_server(echo, "/tmp/s"):
        assert sum(await asyncio.gather(*(answered(None) for _ in range(30)))) == 1_500_000
    pipe = asyncio.subprocess.PIPE
    started = [await asyncio.create_subprocess_exec("echo", str(n), stdout=pipe) for n in range(10)]
    said = await asyncio.gather(*(process.communicate() for process in started))
    assert sum(int(out) for out, _ in said) == 45


def sent_whole() -> None:
    """A file over a socket: ``sendfile`` is refused, and Python copies."""
    with open("file", "wb") as file:
        file.write(bytes(SIZE))
    shutil.copy("file", "copy")
    assert os.path.getsize("copy") == SIZE
    near, far = socket.socketpair()
    with open("file", "rb") as file:
        sending = threading.Thread(target=near.sendfile, args=(file,))
        sending.start()
        got = 0
        while got < SIZE:
            got += len(far.recv(1 << 16))
        sending.join()


def logged() -> None:
    """Processes that say a word into a log and end, and one that reads it slowly."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("/tmp/log")
        for _ in range(5):
            if (child := os.fork()) == 0:
                logger = logging.getLogger()
                logger.addHandler(logging.handlers.SysLogHandler("/tmp/log"))
                logger.warning("m" * 2000)
                os._exit(0)
            os.waitpid(child, 0)
        time.sleep(0.5)
        assert sum(len(receiver.recv(9000)) for _ in range(5)) > 10_000


def letters() -> None:
    """What a hundred and twenty clients leave and go, as a busy program's children do;
    read after some looks.
    """
    kept = []
    for _ in range(120):
        near, far = socket.socketpair()
        near.sendall(bytes(20_000))
        near.close()
        kept.append(far)
    time.sleep(1)
    for far in kept:
        assert len(far.recv(30_000)) == 20_000
        far.close()


if __name__ == "__main__":
    sent_whole()
    logged()
    letters()
    asyncio.run(talk())
