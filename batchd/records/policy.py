"""The policy for commands: what they may see, and reach, and what they leave behind."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from shlex import quote
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Le, MinLen

Address: TypeAlias = IPv4Address | IPv6Address

#: Of this machine and of networks like its own: for hosts that the operator named as private.
_PRIVATE_4 = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_PRIVATE_6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7")))
#: Never reached: no host, everybody, neighbours, examples, the future.
_NEVER_4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
            *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        ),
    )
)
#: Where clouds give a machine its secrets, beside 169.254.169.254.
_METADATA = frozenset(
    {
        *map(IPv4Address, ("100.100.100.200", "168.63.129.16")),
        IPv6Address("fd00:ec2::254"),
        IPv6Address("fd20:ce::254"),
    }
)
#: Of IPv6 only this is handed out to the world …
_GLOBAL_6 = IPv6Network("2000::/3")
#: … and these parts of it are tunnels and examples.
_NEVER_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
#: IPv4 in IPv6's clothes, as networks without IPv4 write it: the last 32 bits.
_TRANSLATED = IPv6Network("64:ff9b::/96")


def forbidden(address: Address, *, private: bool) -> str:
    """Return why commands may not reach an address; empty where they may.

    ``private``: its host was named by the operator as one that may have a private address.
    """
    if isinstance(address, IPv6Address):
        if address in _TRANSLATED:
            return forbidden(IPv4Address(address.packed[-4:]), private=private)
        if address.ipv4_mapped is not None:
            return "an IPv4 address written as IPv6"
    if address in _METADATA:
        return "a cloud's metadata address"
    if isinstance(address, IPv4Address):
        inside = any(address in network for network in _PRIVATE_4)
        never = any(address in network for network in _NEVER_4)
    else:
        inside = any(address in network for network in _PRIVATE_6)
        never = address not in _GLOBAL_6 or any(address in network for network in _NEVER_6)
    if inside:
        return "" if private else "a private address"
    return "an address of no public host" if never else ""


#: What ``network`` says: nothing, everything, or these hosts.
Network: TypeAlias = bool | tuple[str, ...]

#: The ports of an entry that names none.
PORTS = (80, 443)
_MOST_PORT = 65_535
_MOST_HOSTS = 500
_LONGEST_NAME = 253
#: Of a name with a port, in letters beyond ASCII too.
_LONGEST_TEXT = 300
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: What one program reads as a name, "0x7f.1" or "2130706433", another reads as an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Host:
    """An entry of a list: a name, all names below one, or an address; with a port or without."""

    #: In lower case, without a dot at its end; an address as its own text.
    name: str
    port: int | None = None
    #: Whether it stands for the names below ``name``, and not for that itself.
    below: bool = False
    #: Whether it is an address, not a name.
    literal: bool = False

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{'*.' if self.below else ''}{name}{f':{self.port}' if self.port else ''}"

    def holds(self, name: str, port: int) -> bool:
        """Return whether a request to this host and port is meant."""
        return self._names(name) and (port == self.port if self.port else port in PORTS)

    def covers(self, other: Host) -> bool:
        """Return whether it allows all that ``other`` does."""
        ports = (other.port,) if other.port else PORTS
        if other.literal != self.literal or not all(
            port == self.port if self.port else port in PORTS for port in ports
        ):
            return False
        if other.below:
            return self.below and (other.name == self.name or self._names(other.name))
        return self._names(other.name)

    def _names(self, name: str) -> bool:
        return name.endswith(f".{self.name}") if self.below else name == self.name


def parse(text: str) -> Host:
    """Return the entry that ``text`` writes. Raises ``ValueError``, with what is wrong."""
    if "/" in text or "@" in text:
        raise ValueError(
            f"{text[:_LONGEST_TEXT]!r} is not a host: write its name alone, as in api.example.com"
        )
    below = text.startswith("*.")
    name, port = authority(text[2:] if below else text, international=True)
    if not isinstance(name, str):
        if below:
            raise ValueError(f"{text!r} is not a host: an address has nothing below it")
        if why := forbidden(name, private=True):
            raise ValueError(f"{text!r} cannot be allowed: it is {why}")
        return Host(str(name), port, literal=True)
    return Host(name, port, below)


def authority(text: str, *, international: bool = False) -> tuple[str | Address, int | None]:
    """Return host and port of ``HOST[:PORT]``;
    ``international``: the name may have letters beyond ASCII.

    Raises ``ValueError``, with what is wrong.
    """
    match = _AUTHORITY.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        text = text[:_LONGEST_TEXT]
        raise ValueError(f"{text!r} is neither HOST nor HOST:PORT")
    name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port <= _MOST_PORT:
        raise ValueError(f"{text!r}: there is no port {port}")
    if name.startswith("["):
        return _address_6(name[1:-1], text), port
    return _name(name, text, international=international), port


def _address_6(inner: str, text: str) -> IPv6Address:
    try:
        if "%" not in inner:
            return IPv6Address(inner)
    except ValueError:
        pass
    raise ValueError(f"{text!r} holds no IPv6 address")


def _name(name: str, text: str, *, international: bool) -> str | IPv4Address:
    if international and not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{text!r} is not a host name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, labels)):
        if not _NUMBER.fullmatch(labels[-1]):
            return name
        try:
            found = ip_address(name)
        except ValueError:
            found = None
        if isinstance(found, IPv4Address):
            return found
    raise ValueError(f"{text!r} is not a host name")


def means(host: str, names: Collection[str]) -> bool:
    """Return whether a request's Host field means a server of these names.

    A page elsewhere can have its own name lead here (DNS rebinding), but no address.
    """
    try:
        name, _ = authority(host)
    except ValueError:
        return False
    return not isinstance(name, str) or name in names


def parsed(texts: Iterable[str]) -> tuple[Host, ...]:
    """Return the entries of a list, each once. Raises ``ValueError`` with all that is wrong."""
    hosts: dict[Host, None] = {}
    wrong = []
    for text in texts:
        try:
            hosts[parse(text)] = None
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong[:5]))
    if len(hosts) > _MOST_HOSTS:
        raise ValueError(f"a list holds at most {_MOST_HOSTS} hosts")
    return tuple(hosts)


def listed(hosts: Iterable[object], most: int = 12) -> str:
    """Return hosts in one line: the first ones, and how many more there are."""
    names = list(map(str, hosts))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refusal(asked: Network, ceiling: Network) -> str:
    """Return why a task may not have the network that it asks for; empty where it may.

    An address must stand in the operator's list, letter for letter: ``true`` allows names only.
    """
    if not asked:
        return ""
    if not ceiling:
        return "[sandbox] network does not allow it"
    if isinstance(asked, bool):
        if isinstance(ceiling, bool):
            return ""
        return f"[sandbox] network allows only lists of hosts, out of {listed(ceiling)}"
    wanted = parsed(asked)
    if isinstance(ceiling, bool):
        beyond = [host for host in wanted if host.literal]
        why = f"{listed(beyond)}: an address must stand in a list of [sandbox] network itself"
    else:
        allowed = parsed(ceiling)
        beyond = [host for host in wanted if not any(a.covers(host) for a in allowed)]
        why = f"[sandbox] network does not allow {listed(beyond)}; it allows {listed(ceiling)}"
    return why if beyond else ""


@dataclass(frozen=True, slots=True)
class OwnPath:
    """A file or folder, and who says where it is."""

    #: The key that names it, as ``[paths] state``; or else what it is.
    key: str
    path: str


#: The folders of the machine below which ``show`` and ``hide`` name something.
SHOWABLE = ("/usr", "/etc", "/opt")
#: What holds commands; ``none`` runs them unprotected.
Backend: TypeAlias = Literal["bwrap", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxKeys:
    """The keys of ``[sandbox]``: defined here, and nowhere else."""

    backend: Backend = "bwrap"
    #: Who runs commands in fresh directories when batchd is root.
    user: Annotated[str, MinLen(1)] = "nobody"
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
    cgroup: Annotated[str, MinLen(1)] = "auto"
    #: Whether there is no sandbox without one.
    require_cgroup: bool = False
    #: Whether what a command leaves running goes on until the task is evaluated.
    keep_processes: bool = True
    #: Processes of one command at a time, threads included.
    max_processes: Annotated[int, Ge(1), Le(10**15)] = 256
    #: Memory of all processes of one command together.
    max_memory_bytes: Annotated[int, Ge(1 << 24)] = 2 << 30
    #: Processor time of all processes of one command together, in seconds; 0: no limit.
    max_cpu_s: Annotated[float, Ge(0), Le(10**9)] = 3600.0
    #: Processors that one command may keep busy; 0: no limit. Only a cgroup can hold it.
    max_cpus: Annotated[float, Ge(0), Le(100_000)] = 0.0
    #: Size of one file.
    max_file_bytes: Annotated[int, Ge(1 << 16)] = 1 << 30
    #: What a task may put on the disk: what its directory grows by, and its /tmp.
    max_disk_bytes: Annotated[int, Ge(1 << 20)] = 10 << 30
    #: A task's /tmp.
    tmp_bytes: Annotated[int, Ge(1 << 16)] = 2 << 30
    #: What is kept of a command's output; the middle is cut out.
    max_output_bytes: Annotated[int, Ge(1 << 10), Le(1 << 22)] = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy(SandboxKeys):
    """The policy for commands, from ``[sandbox]``."""

    #: Whether files and folders may be made setuid and setgid: by scripts of batchd's own alone.
    sets_ids: bool = False


#: The folders of programs that keep versions, beside ``.git``.
VERSIONS = frozenset({".hg", ".sl", ".svn", ".jj", ".bzr", "_darcs", ".pijul", "CVS"})

#: The path under which it stands that not all of a directory was looked at.
REST = "."
#: What lies there; ``link``: to what is elsewhere, or no file.
TriggerKind: TypeAlias = Literal["file", "link", "folder"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A file that others run or obey, as it is at one moment:
    it has changed where this is another one.
    """

    #: Whose programs, a word of ``data/runs_code.toml``; empty: what lies there is not known.
    by: str
    #: Inode, size, time of the last change of its content and of all else;
    #: of a link also those of what it leads to.
    stamp: tuple[int, ...] = ()
    kind: TriggerKind = "file"

    @property
    def changed_at(self) -> float:
        """When it, or what it leads to, was last changed: a time that no command can set."""
        return max(self.stamp[3::4], default=0) / 1e9


def changed(
    before: Mapping[str, Trigger], after: Mapping[str, Trigger], since: float
) -> Mapping[str, str]:
    """Return what became of each file that is not as it was,
    ``created`` or ``modified``, by path and sorted.

    What was removed runs no more. Where not all was looked at before, what was not found then
    counts only where it has changed ``since``.
    """
    return {
        path: "modified" if path in before else "created"
        for path, trigger in sorted(after.items())
        if before.get(path) != trigger
        and (path in before or REST not in before or trigger.changed_at >= since)
    }


def show(directory: str, path: str, trigger: Trigger, since: float) -> str:
    """Return the command that shows what a file holds, and runs nothing;
    ``since``: when the task began.
    """
    if path == REST:
        return f"find {quote(directory)} -newerct @{int(since)}"
    full = quote(f"{directory}/{path}")
    return {"file": f"cat -v {full}", "link": f"readlink {full}"}.get(
        trigger.kind, f"ls -la {full}"
    )
