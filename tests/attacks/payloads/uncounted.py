"""Has the kernel hold memory that no process maps: the way is its first argument;
it stops at so many megabytes, its second.

Says what it has put there, in megabytes, and sits on it for the seconds of its third. What it says
may be less than what the kernel needs for it.
"""

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)
HERE, ANY = "/dev/shm", ("127.0.0.1", 0)
held: list = []


def checked(result: int) -> int:
    """Return what a call of the C library gave. Raises OSError."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def filled(sender: socket.socket, size: int) -> Iterator[int]:
    """Send until no more is taken."""
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sender.send(bytes(size))


def wide(sender: socket.socket) -> socket.socket:
    """Have it hold as much as it may."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sender.setsockopt(socket.SOL_SOCKET, option, 1 << 30)
    return sender


def unix() -> Iterator[int]:
    """Sockets that are never read from."""
    while True:
        for sender in (pair := socket.socketpair()):
            yield from filled(wide(sender), 1 << 16)
        held.append(pair)


def small() -> Iterator[int]:
    """The same, a byte at a time."""
    while True:
        for sender in (pair := socket.socketpair()):
            yield from filled(wide(sender), 1)
        held.append(pair)


def closed() -> Iterator[int]:
    """Datagrams whose sender is gone."""
    while True:
        for sender in (pair := socket.socketpair(type=socket.SOCK_DGRAM)):
            yield from filled(wide(sender), 100_000)
        held.append(pair[0])
        pair[1].close()


def hidden() -> Iterator[int]:
    """The same, behind connections that are over, which the kernel lists for a minute."""
    with socket.create_server(ANY) as listener:
        for _ in range(5000):
            with socket.create_connection(listener.getsockname()):
                listener.accept()[0].close()
    return closed()


def parted() -> Iterator[int]:
    """Datagrams, each from a socket that is gone, to one that has no descriptor."""
    while True:
        name = f"\0{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(name)
            with contextlib.suppress(BlockingIOError):
                while True:
                    with wide(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender:
                        sender.setblocking(False)
                        yield sender.sendto(bytes(200_000), name)
            carry(receiver.fileno())


def backlog() -> Iterator[int]:
    """Connections that are never accepted, closed by those who made them."""
    while True:
        name = f"\0{time.monotonic_ns()}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen(4096)
        listener.setblocking(False)
        held.append(listener)
        with contextlib.suppress(BlockingIOError):
            while True:
                with wide(socket.socket(socket.AF_UNIX)) as sender:
                    sender.setblocking(False)
                    sender.connect(name)
                    yield from filled(sender, 1 << 16)


def carry(descriptor: int) -> None:
    """Keep a descriptor in a message alone."""
    near, far = socket.socketpair()
    near.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
    near.close()
    held.append(far)


def carried() -> Iterator[int]:
    """Sockets that are full, and only in a message."""
    while True:
        near, far = socket.socketpair()
        yield from filled(wide(near), 1 << 16)
        carry(far.fileno())
        near.close()
        far.close()


def tcp() -> Iterator[int]:
    """Connections on its own loopback."""
    listener = socket.create_server(ANY)
    while True:
        near = wide(socket.create_connection(listener.getsockname()))
        far = listener.accept()[0]
        yield from filled(near, 1 << 16)
        yield from filled(wide(far), 1 << 16)
        held.append((near, far))


def orphans() -> Iterator[int]:
    """Connections that are closed by those who sent."""
    listener = socket.create_server(ANY, backlog=4096)
    held.append(listener)
    while True:
        near = socket.create_connection(listener.getsockname())
        yield from filled(near, 1 << 16)
        near.close()


def udp() -> Iterator[int]:
    """Datagrams on its own loopback."""
    while True:
        receiver = wide(socket.socket(type=socket.SOCK_DGRAM))
        receiver.bind(ANY)
        sender = socket.socket(type=socket.SOCK_DGRAM)
        for _ in range(400):
            yield sender.sendto(bytes(50_000), receiver.getsockname())
        held.append(receiver)


def pages() -> Iterator[int]:
    """Files in the memory of /dev/shm."""
    with open(f"{HERE}/file", "wb") as file:
        while True:
            yield file.write(bytes(1 << 20))


def inodes() -> Iterator[int]:
    """Files there with nothing in them."""
    for number in range(1 << 30):
        os.close(os.open(f"{HERE}/{'x' * 200}{number}", os.O_CREAT | os.O_WRONLY))
        yield 1024


def attributes() -> Iterator[int]:
    """What is said about files there."""
    for number in range(1 << 30):
        os.close(os.open(f"{HERE}/{number}", os.O_CREAT | os.O_WRONLY))
        for name in range(200):
            os.setxattr(f"{HERE}/{number}", f"user.{name}", bytes(256))
            yield 256


def segments() -> Iterator[int]:
    """Shared memory of System V, attached to nothing."""
    libc.shmat.restype = ctypes.c_void_p
    while True:
        segment = checked(libc.shmget(0, 1 << 24, 0o1600))
        there = libc.shmat(segment, None, 0)
        ctypes.memset(there, 1, 1 << 24)
        libc.shmdt(ctypes.c_void_p(there))
        yield 1 << 24


def little_segments() -> Iterator[int]:
    """The same, in as many as there may be."""
    libc.shmat.restype = ctypes.c_void_p
    while True:
        segment = checked(libc.shmget(0, 4096, 0o1600))
        there = libc.shmat(segment, None, 0)
        ctypes.memset(there, 1, 4096)
        libc.shmdt(ctypes.c_void_p(there))
        yield 4096


def messages() -> Iterator[int]:
    """Messages of System V."""
    while True:
        queue = checked(libc.msgget(0, 0o1600))
        with contextlib.suppress(OSError):
            while True:
                checked(libc.msgsnd(queue, b"\1" + bytes(5000), ctypes.c_size_t(4096), 0o4000))
                yield 4096


def semaphores() -> Iterator[int]:
    """Semaphores of System V."""
    while True:
        checked(libc.semget(0, 32000, 0o1600))
        yield 32000 * 64


def pipes() -> Iterator[int]:
    """Pipes that are full."""
    while True:
        out, into = os.pipe()
        held.append(out)
        os.set_blocking(into, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                yield os.write(into, bytes(4096))


def large_file() -> int:
    """Return a file that has two megabytes in memory, and no name."""
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.unlink("file")
    os.write(descriptor, bytes(2 << 20))
    return descriptor


def spliced() -> Iterator[int]:
    """A few bytes of files that are gone, in pipes."""
    while True:
        held.append(pair := os.pipe())
        for _ in range(16):
            file = large_file()
            checked(libc.splice(file, None, pair[1], None, ctypes.c_size_t(100), 0))
            os.close(file)
            yield 2 << 20


def sent() -> Iterator[int]:
    """The same, in sockets."""
    while True:
        held.append(pair := socket.socketpair())
        for _ in range(32):
            file = large_file()
            os.sendfile(pair[0].fileno(), file, 0, 100)
            os.close(file)
            yield 2 << 20


def lent() -> Iterator[int]:
    """A few bytes of large pages of its own, which it then gives back."""
    libc.mmap.restype, size = ctypes.c_void_p, 2 << 20
    while True:
        held.append(pair := os.pipe())
        for _ in range(16):
            there = libc.mmap(None, ctypes.c_size_t(2 * size), 3, 0x22, -1, ctypes.c_long(0))
            page = (there + size - 1) // size * size
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(size), 14)  # MADV_HUGEPAGE
            ctypes.memset(page, 1, size)
            part = (ctypes.c_size_t * 2)(page, 4096)
            checked(libc.vmsplice(pair[1], part, ctypes.c_ulong(1), 0))
            libc.munmap(ctypes.c_void_p(there), ctypes.c_size_t(2 * size))
            yield size


def many(make: Callable[[], object], size: int) -> Iterator[int]:
    """As many as processes may have open."""
    while True:
        if (child := os.fork()) == 0:
            with contextlib.suppress(OSError):
                while True:
                    held.append(make())
            time.sleep(600)
        held.append(child)
        yield 4090 * size


def events() -> Iterator[int]:
    """Counters that can be waited for."""
    return many(lambda: checked(libc.eventfd(0, 0)), 512)


def memory_files() -> Iterator[int]:
    """Files in memory, empty."""
    return many(lambda: os.memfd_create("x" * 200), 1024)


def tables() -> Iterator[int]:
    """What describes memory that was only read, and is nothing but zeros."""
    libc.mmap.restype = ctypes.c_void_p
    while True:
        there = libc.mmap(None, ctypes.c_size_t(1 << 36), 1, 0x4022, -1, ctypes.c_long(0))
        for place in range(0, 1 << 36, 1 << 21):
            ctypes.string_at(there + place, 1)
            yield 4096


def mappings() -> Iterator[int]:
    """What describes as many mappings as processes may have."""
    libc.mmap.restype, size = ctypes.c_void_p, ctypes.c_size_t(4096)
    there = libc.mmap(None, ctypes.c_size_t(4096 * 65000), 0, 0x4022, -1, ctypes.c_long(0))
    for page in range(0, 65000, 2):
        checked(libc.mprotect(ctypes.c_void_p(there + 4096 * page), size, 1))
    while True:
        if (child := os.fork()) == 0:
            time.sleep(600)
        held.append(child)
        yield 16 << 20


def lists() -> Iterator[int]:
    """Who may do what with files there."""
    ends = ((1, 0xFFFFFFFF), *[(2, os.getuid())] * 8000, (4, -1), (0x10, -1), (0x20, -1))
    rules = b"\2\0\0\0" + b"".join(
        kind.to_bytes(2, "little") + b"\7\0" + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for kind, who in ends
    )
    for number in range(1 << 30):
        os.mkdir(f"{HERE}/{number}")
        for name in ("access", "default"):
            os.setxattr(f"{HERE}/{number}", f"system.posix_acl_{name}", rules)
            yield 64_000


def locks() -> Iterator[int]:
    """Locks on parts of files, of a few hundred each: the kernel walks past all of a file's."""
    while True:
        held.append(file := os.memfd_create("locked"))
        for place in range(0, 400, 2):
            fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
            yield 183


def watches() -> Iterator[int]:
    """Events of files that are never read."""
    folder = f"{HERE}/folder"
    os.mkdir(folder)
    with contextlib.suppress(OSError):
        while True:
            held.append(watch := checked(libc.inotify_init()))
            checked(libc.inotify_add_watch(watch, folder.encode(), 0xFFF))
    for number in range(1 << 30):
        name = f"{folder}/{str(number % 2) * 250}"
        os.mknod(name) if number % 4 < 2 else os.unlink(name)
        yield 512 * len(held)


def main() -> None:
    """Fill, say how much it was, and why it ended; sit."""
    most, put, why = int(sys.argv[2]) << 20, 0, ""
    try:
        for more in globals()[sys.argv[1]]():
            put += more
            if put >= most:
                break
    except OSError as error:
        why = str(error)
    print(f"{put >> 20} MB {why}", flush=True)
    time.sleep(float(sys.argv[3]))


main()
