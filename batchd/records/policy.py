"""What commands may do."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.records.hosts import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What commands may do, from ``[sandbox]``."""

    #: ``bwrap`` or ``none``.
    backend: str = "bwrap"
    #: Who runs commands in fresh directories when batchd is root.
    user: str = "nobody"
    #: What tasks may ask for at most: no network, all of it, or hosts of this list.
    network: Network = False
    #: Hosts that may have private addresses.
    private_hosts: tuple[str, ...] = ()
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
