"""Memory of a command: what its processes have, and what the kernel keeps for them."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from batchd.sandbox.kernel_memory import KernelMemory
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.open_files import OpenFiles, tables
from batchd.sandbox.process_table import ProcessUsage, memory
from batchd.sandbox.quantities import amount


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """The memory of a command, in bytes."""

    total: int
    #: Files in memory that have no name; they may be mapped.
    nameless: int
    #: What the kernel needs for descriptors and mappings.
    kernel: int
    beside: KernelMemory

    @classmethod
    def by(cls, processes: Sequence[ProcessUsage], beside: KernelMemory, limit: int) -> Self:
        """Look: quickly, and at too much, where that is below the limit all the same."""
        opened = OpenFiles.by(processes, limit)
        device = _memory_device()
        nameless = opened.nameless((device,))[device]
        kernel = opened.kernel() + tables(processes)
        files, more = nameless + beside.files, kernel + beside.names + beside.sockets
        total = files + more
        if more <= limit:  # else it makes no difference, and takes its time
            total += sum(process.resident for process in processes)
        if more <= limit < total:
            total = memory(processes, files) + more
        return cls(total, nameless, kernel, beside)

    def mostly(self, least: int) -> str:
        """Say which memory that no process has taken
        for itself is at least so much; empty: none.
        """
        parts = {
            "in sockets": self.beside.sockets,
            "in files in memory": self.nameless + self.beside.files,
            "in names and attributes of such files": self.beside.names,
            "in the kernel, for what they have open and mapped": self.kernel,
        }
        named = [f"{amount(size)} {where}" for where, size in parts.items() if size >= least]
        return f" ({', '.join(named)})" if named else ""


@functools.cache
def _memory_device() -> int:
    """Return the device of files in memory."""
    descriptor = memory_file(b"")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
