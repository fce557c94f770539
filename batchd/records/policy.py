"""The policy for commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from batchd.records.hosts import Network

#: The folders of the machine below which ``show`` and ``hide`` name something.
SHOWABLE = ("/usr", "/etc", "/opt")
#: What holds commands; ``none`` runs them unprotected.
Backend: TypeAlias = Literal["bwrap", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """The policy for commands, from ``[sandbox]``."""

    backend: Backend = "bwrap"
    #: Who runs commands in fresh directories when batchd is root.
    user: str = "nobody"
    #: What tasks may ask for at most: no network, all of it, or hosts of this list.
    network: Network = False
    #: Hosts that may have private addresses.
    private_hosts: tuple[str, ...] = ()
    #: Absolute paths below /etc, /opt and /usr that commands see,
    #: beside /usr and a little of /etc; the longest one counts.
    show: tuple[str, ...] = ()
    #: And those that they do not.
    hide: tuple[str, ...] = ()
    #: What holds commands to their limits together:
    #: ``auto``, ``none``, or the path of a cgroup of version 2.
    cgroup: str = "auto"
    #: Whether there is no sandbox without one.
    require_cgroup: bool = False
    #: Whether what a command leaves running goes on until the task is evaluated.
    keep_processes: bool = True
    #: Processes of one command at a time, threads included.
    max_processes: int = 256
    #: Memory of all processes of one command together.
    max_memory_bytes: int = 2 << 30
    #: Processor time of all processes of one command together, in seconds; 0: no limit.
    max_cpu_s: float = 3600.0
    #: Processors that one command may keep busy; 0: no limit. Only a cgroup can hold it.
    max_cpus: float = 0.0
    #: Size of one file.
    max_file_bytes: int = 1 << 30
    #: What a task may put on the disk: what its directory grows by, and its /tmp.
    max_disk_bytes: int = 10 << 30
    #: A task's /tmp.
    tmp_bytes: int = 2 << 30
    #: What is kept of a command's output; the middle is cut out.
    max_output_bytes: int = 16 << 10
    #: Whether files and folders may be made setuid and setgid: by scripts of batchd's own alone.
    sets_ids: bool = False
