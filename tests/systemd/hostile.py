"""What a hostile member of the group runs, as themselves: each function is one kind of attempt.

    python3 hostile.py ATTEMPT ARGUMENT…

It prints what it managed, as JSON: attempts that are refused say nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _EXCHANGE = -100, 2
_PTRACE_SEIZE = 0x4206
_INBOX = Path("/var/lib/batchd/inbox")


def writable(*tops: str) -> list[str]:
    """Find what is another's and can be written all the same: files, folders, sockets, devices."""
    return sorted({path for top in tops for path in _all(top) if _mine_to_write(path)})


def readable(*tops: str) -> list[str]:
    """Find what can be opened, or listed."""
    return sorted({path for top in tops for path in _all(top) if _opens(path)})


def _all(top: str) -> Iterator[str]:
    yield top
    for folder, folders, files in os.walk(top):
        yield from (f"{folder}/{name}" for name in (*folders, *files))


def _mine_to_write(path: str) -> bool:
    with contextlib.suppress(OSError):
        found = Path(path).lstat()
        link, own = stat.S_ISLNK(found.st_mode), found.st_uid == os.getuid()
        return not link and not own and os.access(path, os.W_OK)
    return False


def _opens(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return True
    return False


def reach(pid: str, *others: str) -> list[str]:
    """Try to stop, trace, read or speak to a daemon and its children."""
    state = "/var/lib/batchd/.batchd"
    tries: dict[str, Callable[[], object]] = {
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(f"{state}/control.sock"),
        "backup": lambda: Path("/tmp/store").write_bytes(Path(f"{state}/batchd.db").read_bytes()),
        "group": lambda: Path(_cgroup(pid), "cgroup.procs").write_text(str(os.getpid())),
        "freeze": lambda: Path(_cgroup(pid), "cgroup.freeze").write_text("1"),
    }
    for number in map(int, (pid, *others)):
        tries |= {
            f"signal {number}": lambda n=number: os.kill(n, signal.SIGSTOP),  # type: ignore[misc]
            f"trace {number}": lambda n=number: _trace(n),  # type: ignore[misc]
        }
        for what in ("environ", "mem", "maps", "cwd", "root", "fd", "io", "stack"):
            tries[f"{what} {number}"] = lambda n=number, w=what: _look(f"/proc/{n}/{w}")  # type: ignore[misc]
    return [name for name, attempt in tries.items() if _succeeds(attempt)]


def _succeeds(attempt: Callable[[], object]) -> bool:
    with contextlib.suppress(OSError):
        attempt()
        return True
    return False


def _cgroup(pid: str) -> str:
    return "/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().split("::")[1].strip()


def _trace(pid: int) -> None:
    if _LIBC.ptrace(_PTRACE_SEIZE, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")


def _look(path: str) -> None:
    if path.endswith(("cwd", "root")):
        os.readlink(path)
    elif path.endswith("fd"):
        os.listdir(path)
    else:
        with Path(path).open("rb") as file:
            if not file.read(1):
                raise OSError("nothing to read: of a process that has ended")


def replace() -> list[str]:
    """Try to take the spool's folders away, to exchange them, and to change or open them."""
    tops = (
        "inbox",
        "outbox",
        ".batchd",
        "inbox/.claimed",
        ".batchd/claimed",
        "outbox/honest",
    )
    managed = []
    for name in (
        *tops,
        "outbox/honest/001.json",
        "outbox/honest/summary.json",
        "outbox/status.json",
    ):
        path = f"/var/lib/batchd/{name}"
        for what, attempt in {
            "move": lambda p=path: os.rename(p, f"{_INBOX}/gone"),
            "remove": lambda p=path: os.rmdir(p),
            "unlink": lambda p=path: os.unlink(p),
            "link": lambda p=path: os.link(p, f"{_INBOX}/linked.json"),
            "open": lambda p=path: os.chmod(p, 0o777),
            "own": lambda p=path: os.chown(p, os.getuid(), -1),
            "write": lambda p=path: os.truncate(p, 0),
            "fill": lambda p=path: os.close(os.open(f"{p}/x.json", os.O_CREAT | os.O_EXCL)),
            "exchange": lambda p=path: _exchange(f"{_INBOX}/mine", p),
        }.items():
            (_INBOX / "mine").mkdir(exist_ok=True)
            # They may fill the inbox, and that alone.
            if _succeeds(attempt) and (name, what) != ("inbox", "fill"):
                managed.append(f"{what} {name}")
    return managed


def _exchange(one: str, other: str) -> None:
    names = os.fsencode(one), os.fsencode(other)
    if _LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def race(stop: str) -> int:
    """Have a file and something else take each other's place under one name,
    until a file says stop; return the turns.
    """
    aside = _INBOX / ".race"
    aside.mkdir()
    one, other = _INBOX / "race.json", aside / "race.json"
    for turn in itertools.count():
        _make(one, _KINDS[-1])
        _make(other, _KINDS[turn % len(_KINDS)])
        for _ in range(50):
            if not _succeeds(lambda: _exchange(str(one), str(other))):
                break
        for path in (one, other):
            # One of the two fits.
            _succeeds(path.unlink) or _succeeds(path.rmdir)
        if Path(stop).exists():
            return turn
    raise AssertionError


_KINDS = ("a folder", "a link", "a FIFO", "a file")


def _make(path: Path, kind: str) -> None:
    """Make something, unless there is something.

    A folder that others may move is one that they may write.
    """
    with contextlib.suppress(FileExistsError):
        if kind == "a link":
            path.symlink_to("/var/lib/batchd/.batchd")
        elif kind == "a FIFO":
            os.mkfifo(path)
        elif kind == "a folder":
            path.mkdir()
            path.chmod(0o777)
        else:
            # Whole, so that a look at it is followed by a claim;
            # and wrong, so that no answer is paid for.
            with path.open("x") as file:
                file.write('{"first_prompt": 1}')


def lease(count: str, stop: str) -> int:
    """Drop files that the kernel lets no one else open before the holder agrees;
    agree to nothing, until a file says stop.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = []
    for number in range(int(count)):
        path = _INBOX / f".leased-{number}"
        path.write_text('{"first_prompt": 1}')
        held.append(os.open(path, os.O_RDWR))
        fcntl.fcntl(held[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)
        path.rename(_INBOX / f"leased-{number}.json")
    while not Path(stop).exists():
        for descriptor in held:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return len(held)


def litter(count: str) -> int:
    """Fill the inbox with names that are no files, and with some that are files of no use."""
    for number in range(int(count)):
        name = f"{_INBOX}/{number:06d}.json"
        match number % 4:
            case 0:
                os.symlink("/etc/passwd", name)
            case 1:
                os.mkfifo(name)
            case 2:
                os.mkdir(name)
            case _:
                os.close(os.open(f"{_INBOX}/.{number}", os.O_CREAT | os.O_WRONLY))
    return int(count)


def clear() -> int:
    """Take away again what is theirs."""
    mine = [
        entry
        for entry in os.scandir(_INBOX)
        if entry.stat(follow_symlinks=False).st_uid == os.getuid()
    ]
    subprocess.run(
        ["xargs", "-0", "rm", "-rf", "--"],
        input=b"\0".join(os.fsencode(x.path) for x in mine),
        check=True,
    )
    return len(mine)


def exchange(batch: str) -> list[str]:
    """Try to write something else into each file of a batch."""
    task = json.dumps({"evaluator": "none", "tasks": [{"first_prompt": "another"}]})
    folder = Path("/var/lib/batchd/outbox", batch)
    return [path.name for path in folder.iterdir() if _succeeds(lambda p=path: p.write_text(task))]  # type: ignore[misc]


def fill(left: str) -> str:
    """Take all the room of the disk, or all of its names."""
    with contextlib.suppress(OSError):
        if left == "bytes":
            with (_INBOX / ".filler").open("wb", 0) as file:
                while True:
                    file.write(bytes(1 << 16))
        for number in itertools.count():
            os.mkdir(f"{_INBOX}/.filler-{number}")
    return left


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
