"""The program that enters sandboxes and starts commands there: one a worker, which forks
a helper for each sandbox.

To enter a user namespace a process must have one thread, so no worker can do it itself; and to
start Python for each sandbox takes longer than all else. Run by its path with ``python -I -S``: it
imports nothing of ours, and holds nothing of a task's. Standard output is a Unix socket of packets
(``SOCK_SEQPACKET``), each a value of ``marshal`` with descriptors beside it,
as ``entrance`` sends them. A helper has a socket of its own, on which it answers.

A helper makes its sandbox: it starts bwrap, whose first process ends with it. Then it gives up
all that commands may not do before it listens: what it starts has nothing left to give up. It stays
outside of the sandbox's process namespace, where nothing inside can see or signal it; what it
starts is inside, and shares its memory, which cannot be looked into (``PR_SET_DUMPABLE``), until it
is the command.
"""

from __future__ import annotations

# The bare modules: ``socket`` takes longer to import than all the rest.
import _socket
import ctypes
import gc
import marshal
import os
import resource
import select

TYPE_CHECKING = False
if TYPE_CHECKING:  # of what this loads, each helper has a copy
    from typing import Any, NoReturn

#: Signals that Python ignores, which a command would inherit.
_IGNORED = (13, 25)
_SIGCHLD, _SIGKILL = 17, 9
_EMFILE = 24
#: What the first process of a sandbox is given to copy once it runs: all is made then.
_UP = b"\x06"
#: The words before its number, where bwrap reports on itself.
_NUMBER = b'"child-pid": '
# Of linux/sched.h.
_CLONE_PARENT, _CLONE_INTO_CGROUP = 0x00008000, 0x200000000
_SYS_CLONE3 = 435  # on all processors
# Of linux/prctl.h.
_SET_NAME, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_READ, _CAPBSET_DROP = 15, 4, 22, 23, 24
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_MSG_CMSG_CLOEXEC = 0x40000000
#: In /proc/PID/stat, behind the name in brackets: whose child it is;
#: where the command line begins, whose end is the next.
_PARENT, _ARG_START = 1, 45
#: More than any message has: what may be long comes in a file.
_MAX_MESSAGE_BYTES = 1 << 13
_BACKLOG = 128

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


class _CloneArguments(ctypes.Structure):
    """``struct clone_args``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack"),
            *("stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


def main() -> None:
    """Fork a helper for each sandbox that is asked for, until the worker is gone."""
    line = _socket.socket(fileno=1)
    _hide()
    # A helper shares what it does not touch.
    gc.disable()
    gc.freeze()
    while True:
        try:
            asked, descriptors = _received(line)
        except OSError:
            continue  # who asked has the end of its socket for an answer
        if asked is None:
            return
        answers, _, *group = descriptors
        theirs = _socket.socket(fileno=answers)
        clone, length, grouped = asked
        try:
            if _forked(clone, *group[:grouped]) == 0:
                _help(theirs, descriptors[1], descriptors[2 + grouped :], length)
        except OSError as error:
            theirs.send(marshal.dumps((0, 0, 0, (error.errno or 0, str(error)))))
        theirs.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def _received(line: _socket.socket) -> tuple[Any, list[int]]:
    """Return what is asked, or None at the end, and the descriptors that came with it.

    Raises ``OSError`` where this process has no room for all of them.
    """
    said, beside, flags, _ = line.recvmsg(_MAX_MESSAGE_BYTES, _MAX_MESSAGE_BYTES, _MSG_CMSG_CLOEXEC)
    rights = b"".join(data for _, kind, data in beside if kind == _socket.SCM_RIGHTS)
    found = [int.from_bytes(rights[i : i + 4], "little") for i in range(0, len(rights) - 3, 4)]
    if flags & _socket.MSG_CTRUNC:
        for descriptor in found:
            os.close(descriptor)
        raise OSError(_EMFILE, os.strerror(_EMFILE))
    return marshal.loads(said) if said else None, found  # noqa: S302 (our own worker's)


def _hide() -> None:
    """Hide of this process where batchd lies, and all else: its children begin with the same."""
    words = _status("self")
    begin, end = int(words[_ARG_START]), int(words[_ARG_START + 1])
    ctypes.memset(begin, 0, end - begin)
    _checked(_libc.prctl(_SET_NAME, b"batchd-starter", 0, 0, 0), "PR_SET_NAME")
    _checked(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def _status(process: int | str) -> list[bytes]:
    descriptor = os.open(f"/proc/{process}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).rpartition(b")")[2].split()
    finally:
        os.close(descriptor)


def _forked(clone: int, group: int | None = None) -> int:
    """Fork a child of the worker, which waits for it, in a cgroup where one is given.

    Raises ``OSError``.
    """
    if group is None:
        return _checked(_libc.syscall(clone, _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0), "clone")
    made = _CloneArguments(flags=_CLONE_PARENT | _CLONE_INTO_CGROUP, cgroup=group)
    return _checked(_libc.syscall(_SYS_CLONE3, ctypes.byref(made), ctypes.sizeof(made)), "clone3")


class _NotMadeError(Exception):
    """bwrap has made no sandbox: what it said."""


class _Sandbox:
    """The sandbox of a helper."""

    def __init__(self) -> None:
        #: bwrap, a child of this process, and the first process inside, its only child.
        self.bwrap = self.first = 0
        #: What stands for the first process, whatever has its number by then; -1: there is none.
        self.process = -1
        #: As long as this process has it, the first process has something to wait for.
        self._keeping = -1
        #: What was started there, and not waited for yet.
        self.started: set[int] = set()

    def make(self, line: _socket.socket, words: list[bytes], given: list[int], at: int) -> None:
        """Start bwrap, which reports on the descriptor ``at``, and has what it is given behind it;
        return when all is made. Raises ``OSError``, ``_NotMadeError``.
        """
        source, self._keeping = os.pipe()
        heard, output = os.pipe()
        report, reporting = os.pipe()
        os.write(self._keeping, _UP)
        places = [(source, 0), (output, 1), (output, 2), (reporting, at)]
        places += [(descriptor, at + 1 + i) for i, descriptor in enumerate(given)]
        self.bwrap = os.posix_spawn(
            words[0],
            words[1:],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, *pair) for pair in places],
            setsid=True,
            setsigdef=_IGNORED,
        )
        for descriptor in (source, output, reporting, *given):
            os.close(descriptor)
        # It stays open: bwrap reports more, and would be ended by a broken pipe.
        if reported := os.read(report, 4096).partition(_NUMBER)[2]:
            self.first = int(reported.partition(b",")[0].strip(b" }\n"))
            self.process = os.pidfd_open(self.first)
        waiting = select.poll()
        waiting.register(heard, select.POLLIN)
        waiting.register(line, select.POLLRDHUP)
        said = b""
        while _UP not in said:
            if any(descriptor != heard for descriptor, _ in waiting.poll()):
                self.kill()
            if not (more := os.read(heard, 4096)):
                raise _NotMadeError(said[-_MAX_MESSAGE_BYTES:])
            said += more
        os.close(heard)

    def kill(self) -> None:
        """Kill all of it, as long as this process may."""
        for number in (self.first, self.bwrap):
            if number:
                os.kill(number, _SIGKILL)

    def enter(self, namespaces: int, directory: bytes) -> None:
        """Enter all namespaces of the first process, and take its root."""
        if int(_status(self.first)[_PARENT]) != self.bwrap:
            raise OSError(0, "its first process is another one")
        root = os.stat(f"/proc/{self.first}/root/")
        _checked(_libc.setns(self.process, namespaces), "setns")
        here = os.stat("/")
        if (here.st_dev, here.st_ino) != (root.st_dev, root.st_ino):
            raise OSError(0, "its root is another one")
        # What it starts begins there, also where the directory is closed to its owner.
        os.chdir(directory)

    def reap(self) -> None:
        """Wait for what is dead of what was started there, and for nothing else: the number of
        bwrap, which the worker kills by it, stays its own.
        """
        for number in tuple(self.started):
            if os.waitpid(number, os.WNOHANG)[0]:
                self.started.discard(number)

    def end(self) -> None:
        """Let go of it, and return when all that ran there is dead."""
        if self._keeping >= 0:
            os.close(self._keeping)
        # The first process waits for what was started here to be waited for, and bwrap for it.
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def _help(line: _socket.socket, setup: int, given: list[int], length: int) -> NoReturn:
    """Make a sandbox, enter it, give up, say so, and start what the worker asks for,
    until it hangs up.
    """
    sandbox = _Sandbox()
    number = os.getpid()
    try:
        # Standard output is the worker's line to who forks: it shall hear of that one's end.
        for standard in (1, 2):
            os.dup2(0, standard)
        _checked(_libc.prctl(_SET_NAME, b"batchd-entry", 0, 0, 0), "PR_SET_NAME")
        # Where bwrap is killed before the first process has ended, that has to be waited for here.
        _checked(_libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
        asked = marshal.loads(os.pread(setup, length, 0))  # noqa: S302 (our own worker's)
        os.close(setup)
        # bwrap copies files, which may be larger than this process may write.
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        sandbox.make(line, asked["words"], given, asked["at"])
        sandbox.enter(asked["namespaces"], asked["directory"])
        _give_up(asked)
        _say(line, (number, sandbox.bwrap, sandbox.first, None), sandbox.process)
        while _served(line, sandbox, asked["environment"]):
            pass
    except _NotMadeError as error:
        _say(line, (number, 0, 0, error.args[0]))
    except OSError as error:
        wrong = (error.errno or 0, str(error))
        _say(line, (number, sandbox.bwrap, sandbox.first, wrong), sandbox.process)
    finally:
        sandbox.end()
        os._exit(0)


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


def _served(line: _socket.socket, sandbox: _Sandbox, environment: dict[bytes, bytes]) -> bool:
    """Do one thing that the worker asks for; return whether it may ask for another."""
    try:
        asked, descriptors = _received(line)
    except OSError as error:
        _say(line, -(error.errno or 1))
        return True
    if asked is None:
        return False
    kind, value = asked
    answer, beside = 0, -1
    try:
        sandbox.reap()
        if kind == "listen":
            listener = _listening(value)
            beside = listener.fileno()
        else:
            text, *streams = descriptors
            words = marshal.loads(os.pread(text, value, 0))  # noqa: S302 (our own worker's)
            # Standard input of this process is nothing, and takes nothing.
            if kind == "left":
                source, output = streams[0], 0
            else:
                source, output = streams[1] if streams[1:] else 0, streams[0]
            answer = _started(words, environment, source, output)
            sandbox.started.add(answer)
    except OSError as error:
        answer = -(error.errno or 1)
    for descriptor in descriptors:
        os.close(descriptor)
    if kind == "command" and answer > 0:
        # Until the worker asks for something else, the number is still the command's own.
        ended = os.waitid(os.P_PID, answer, os.WEXITED | os.WNOWAIT)
        assert ended is not None, "it is waited for until it ends"
        answer = ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)
    _say(line, answer, beside)
    return True


def _say(line: _socket.socket, answer: Any, descriptor: int = -1) -> None:
    """Answer, with a descriptor beside it where there is one."""
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, "little", signed=True))
    line.sendmsg([marshal.dumps(answer)], [rights] if descriptor >= 0 else [])


def _started(words: list[bytes], environment: dict[bytes, bytes], source: int, output: int) -> int:
    """Start a command, and return its number outside. Raises ``OSError``."""
    found = [words[0]]
    if b"/" not in words[0]:
        found = [b"%s/%s" % (at, words[0]) for at in environment.get(b"PATH", b"").split(b":")]
    for path in found:
        if path == found[-1] or os.access(path, os.X_OK):
            break
    return os.posix_spawn(
        path,
        words,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, *pair) for pair in ((source, 0), (output, 1), (output, 2))
        ],
        setsid=True,
        setsigdef=_IGNORED,
    )


def _listening(port: int) -> _socket.socket:
    """Return a socket that listens on the sandbox's loopback."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", port))
    listener.listen(_BACKLOG)
    return listener


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


if __name__ == "__main__":
    main()
