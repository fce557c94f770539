"""The helper that enters a standing sandbox and starts commands there:
a program of its own, one a sandbox.

To enter a user namespace a process must have one thread, so no worker can do it itself. Run by its
path with ``python -I -S``: it imports nothing of ours. Standard output is a Unix socket of packets
(``SOCK_SEQPACKET``), each a value of ``marshal`` with descriptors beside it,
as ``standing`` sends them.

It gives up all that commands there may not do before it listens: what it starts has nothing left to
give up. It stays outside of the sandbox's process namespace, where nothing inside can see or signal
it; what it starts is inside,
and cannot be looked into (``PR_SET_DUMPABLE``) until it is the command.
"""

from __future__ import annotations

# The bare module: ``socket`` takes longer to import than all the rest.
import _socket
import ctypes
import errno
import marshal
import os
import resource
import time
from typing import Any, NoReturn

#: Ignored by Python, which a command would inherit.
_SIGPIPE, _SIGXFSZ = 13, 25
_SIGCHLD, _SIGKILL = 17, 9
_SIG_DFL = None
# Of linux/sched.h.
_CLONE_PARENT = 0x00008000
_NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
# Of linux/prctl.h.
_SET_NAME, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_READ, _CAPBSET_DROP = 15, 4, 22, 23, 24
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_MSG_CMSG_CLOEXEC = 0x40000000
#: In /proc/PID/stat, behind the name in brackets:
#: where the command line begins; its end is the next.
_ARG_START = 45
#: More than any message has: what may be long comes in a file.
_MAX_MESSAGE_BYTES = 1 << 16
#: What is forked is there, and says so, within this time (seconds).
_PATIENCE_S, _PAUSE_S = 1.0, 0.0005
#: What a shell answers for a program that is not there, or cannot be executed.
_NOT_FOUND, _CANNOT_RUN = 127, 126

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


def main() -> None:
    """Enter, give up, listen."""
    line = _socket.socket(fileno=1)
    setup, (process,) = _received(line)
    try:
        _hide()
        _enter(process, setup["first"], setup["directory"])
        os.close(process)
        _give_up(setup)
    except OSError as error:
        line.send(marshal.dumps(str(error)))
        return
    line.send(marshal.dumps(""))
    while True:
        asked, descriptors = _received(line)
        if asked is None:
            return
        try:
            if asked["left"]:
                number = _left(asked, descriptors)
            else:
                number = _started(setup["clone"], asked, descriptors)
        except OSError as error:
            number = -(error.errno or 1)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(marshal.dumps(number))


def _received(line: _socket.socket) -> tuple[Any, tuple[int, ...]]:
    """Return what is asked, or None at the end, and the descriptors that came with it."""
    said, beside, _, _ = line.recvmsg(_MAX_MESSAGE_BYTES, _MAX_MESSAGE_BYTES, _MSG_CMSG_CLOEXEC)
    rights = b"".join(data for _, kind, data in beside if kind == _socket.SCM_RIGHTS)
    found = tuple(int.from_bytes(rights[i : i + 4], "little") for i in range(0, len(rights) - 3, 4))
    return marshal.loads(said) if said else None, found  # noqa: S302 (our own worker's)


def _hide() -> None:
    """Hide of this process where batchd lies, and all else: its children begin with the same."""
    with open("/proc/self/stat", "rb") as file:  # pathlib takes longer to import than all the rest
        words = file.read().rpartition(b")")[2].split()
    begin, end = int(words[_ARG_START]), int(words[_ARG_START + 1])
    ctypes.memset(begin, 0, end - begin)
    _checked(_libc.prctl(_SET_NAME, b"batchd-entry", 0, 0, 0), "PR_SET_NAME")
    _checked(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def _enter(process: int, first: int, directory: str) -> None:
    """Enter the namespaces of a process, and take its root."""
    root = os.stat(f"/proc/{first}/root/")
    kinds = 0
    for name, kind in _NAMESPACES.items():
        # What it shares with the machine cannot be entered by everybody, nor need it be.
        theirs, ours = (os.stat(f"/proc/{of}/ns/{name}").st_ino for of in (first, "self"))
        kinds |= kind if theirs != ours else 0
    _checked(_libc.setns(process, kinds), "setns")
    here = os.stat("/")
    if (here.st_dev, here.st_ino) != (root.st_dev, root.st_ino):
        raise OSError(0, "its root is another one")
    # What it starts begins there, also where the directory is closed to its owner.
    os.chdir(directory)


def _give_up(setup: dict[str, Any]) -> None:
    """Become who runs commands there, with their limits,
    and behind their filter of system calls.
    """
    for kind, value in setup["limits"]:
        resource.setrlimit(kind, (value, value))
    capability = 0
    while _libc.prctl(_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _checked(_libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP")
        capability += 1
    _checked(_libc.prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT")
    if os.getuid() == 0:
        os.setgroups([])
    os.setresgid(*[setup["gid"]] * 3)
    os.setresuid(*[setup["uid"]] * 3)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    # To become somebody else has set this back to what the machine has for such processes.
    _checked(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    lines = setup["filter"]
    program = _Filter(len(lines) // 8, lines)
    _checked(
        _libc.prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
        "PR_SET_SECCOMP",
    )


def _started(clone: int, asked: dict[str, Any], descriptors: tuple[int, ...]) -> int:
    """Start a command as a child of the worker, which waits for it,
    and return its number outside.
    """
    number = _libc.syscall(clone, _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0)
    if number == 0:
        _become(asked, descriptors)
    return int(_checked(number, "clone"))


def _left(asked: dict[str, Any], descriptors: tuple[int, ...]) -> int:
    """Start a command that the sandbox's first process adopts, and return its number outside."""
    ours, theirs = _socket.socketpair()
    ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    ours.settimeout(_PATIENCE_S)
    parent = os.fork()
    if parent == 0:
        try:
            if os.fork() == 0:
                # The kernel says who sends this, by the number that the reader knows it by.
                theirs.send(b".")
                _become(asked, descriptors)
        finally:
            os._exit(0)
    # A process inside may stop it, or what it has started.
    _end(parent)
    theirs.close()
    try:
        said, beside, _, _ = ours.recvmsg(1, _MAX_MESSAGE_BYTES)
    except TimeoutError:
        said = b""
    ours.close()
    if not said:
        raise OSError(errno.EAGAIN, "fork")
    return int.from_bytes(beside[0][2][:4], "little")


def _end(process: int) -> None:
    """Wait for a child that ends at once, and kill it where it does not."""
    deadline = time.monotonic() + _PATIENCE_S
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(process, _SIGKILL)
        time.sleep(_PAUSE_S)


def _become(asked: dict[str, Any], descriptors: tuple[int, ...]) -> NoReturn:
    """Become the command.

    Its words and variables come in the first descriptor, its output goes to the second.
    """
    try:
        os.setsid()
        text, output, *source = descriptors
        for descriptor, number in ((output, 1), (output, 2), *((one, 0) for one in source)):
            os.dup2(descriptor, number)
        for ignored in (_SIGPIPE, _SIGXFSZ):
            _libc.signal(ignored, _SIG_DFL)
        words, variables = marshal.loads(os.pread(text, asked["length"], 0))  # noqa: S302 (as above)
        os.execve(words[0], words, variables)  # noqa: S606 (there is one, if it is asked for)
    except OSError as error:
        os.write(2, f"{error.strerror}\n".encode())
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN)


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


if __name__ == "__main__":
    main()
