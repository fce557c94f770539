"""What commands may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What commands may do, from ``[sandbox]``."""

    #: ``bwrap`` or ``none``.
    backend: str = "bwrap"
    #: Who runs commands in fresh directories when batchd is root.
    user: str = "nobody"
    #: Whether tasks may ask for the network.
    network: bool = False
    #: Processes of one user at a time.
    max_processes: int = 256
    #: Data segment of one process.
    max_memory_bytes: int = 2 << 30
    #: Size of one file.
    max_file_bytes: int = 1 << 30
    #: The sandbox's /tmp.
    tmp_bytes: int = 256 << 20
    #: What is kept of a command's output; the middle is cut out.
    max_output_bytes: int = 16 << 10
