"""Output of a command: read as it comes, its head and tail kept, the rest counted."""

from __future__ import annotations

import asyncio
import codecs
import os
import select

from batchd.masking import Masker

_READ = 1 << 16
#: So much is read at full speed; then one read a pause,
#: so that an output bomb cannot have the loop for itself.
_FREE = 4 << 20
_PAUSE_S = 0.001
#: Reads of what a pipe still holds when all its writers are dead.
_LAST_READS = 32
#: The bytes of a UTF-8 character behind its first.
_CONTINUATION = bytes(range(0x80, 0xC0))


class CommandOutput:
    """The head and the tail of a stream of bytes, in bounded memory."""

    def __init__(self, limit: int, masker: Masker) -> None:
        self._masker = masker
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        #: Bytes seen.
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > self._half + _READ:
            del self._tail[: -self._half]

    @property
    def cut(self) -> int:
        """How many bytes of the middle are not kept."""
        return max(0, self.total - len(self._head) - self._half)

    def text(self) -> str:
        """Return what is kept, without secrets, the cut said;
        bytes that are not UTF-8 are replaced.
        """
        if not self.cut:
            return self._masker.text((self._head + self._tail).decode("utf-8", "replace"))
        # A character that the cut went through is left out whole.
        head = codecs.getincrementaldecoder("utf-8")("replace").decode(self._head)
        tail = self._tail[-self._half :].lstrip(_CONTINUATION).decode("utf-8", "replace")
        # Nor may half of a secret stay where the cut went through one.
        head, tail = self._masker.before_cut(head), self._masker.after_cut(tail)
        return f"{head}\n[... {self.cut:,} bytes of output cut out here ...]\n{tail}"


class OutputReader:
    """The reader of a pipe: moves its bytes to an ``CommandOutput`` whenever the loop has time.

    Owns the descriptor.
    """

    def __init__(self, descriptor: int, output: CommandOutput) -> None:
        self._descriptor = descriptor
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        os.set_blocking(descriptor, False)
        self._listen()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        if not self._read():
            self._loop.remove_reader(self._descriptor)
        elif self._output.total > _FREE:
            self._loop.remove_reader(self._descriptor)
            self._timer = self._loop.call_later(_PAUSE_S, self._listen)

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return True
        self._output.add(data)
        return bool(data)

    def handed(self) -> int | None:
        """Take what the pipe holds, and close this;
        return the pipe where somebody may still write to it.
        """
        self._drain()
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        if any(event & select.POLLHUP for _, event in waiting.poll(0)):
            return None
        pipe = os.dup(self._descriptor)
        self.close(drain=False)
        os.set_blocking(pipe, True)
        return pipe

    def close(self, *, drain: bool) -> None:
        """Stop, once; with ``drain``, take what the pipe still holds first."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        if drain:
            self._drain()
        os.close(self._descriptor)

    def _drain(self) -> None:
        # Bounded: a descriptor that was passed on by a socket may have a writer for ever.
        for _ in range(_LAST_READS):
            before = self._output.total
            if not self._read() or self._output.total == before:
                break
