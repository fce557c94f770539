"""The sections of config.toml and their keys: of each its type, default and bounds, and what is
wrong with a value that its type allows. The comments of config.toml say what they mean.

They are plain dataclasses, which ``reading`` reads. Money is in US dollars, ``_s`` marks seconds
and ``_bytes`` bytes. Providers and models are in ``providers``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_type_hints
from urllib.parse import unquote

from annotated_types import Ge, Gt, Le, MinLen

from batchd import masking, records, silent_paths
from batchd.config import operator_files, trust
from batchd.config.providers import Fallback, ModelSection, ProviderSection, presets
from batchd.config.reading import FilePath, Holds, KeyFile, Name, Place, Reads, Section, Variable
from batchd.errors import NotPossibleError, Problem
from batchd.log import LineFormat, LogLevel
from batchd.records import SHOWABLE, AskedEffort, CheckIn, Evaluator, Network, Tier, policy
from batchd.records.tasks import Amount, Count, Positive, Span

_Table = TypeVar("_Table")
Folder: TypeAlias = Annotated[FilePath, MinLen(1)]
_HIGHEST_PORT = 65535
#: What commands have of batchd's own making, or by their network:
#: what stands there would not be the machine's.
_MADE = tuple(
    f"/etc/{name}"
    for name in ("passwd", "group", "nsswitch.conf", "gitconfig", "hosts", "resolv.conf")
)
#: No user of https, no port that is none, nothing that a server could take for another path:
#: ``..``, escapes, a query.
_URL = re.compile(
    r"(https://|ssh://([A-Za-z0-9._-]+@)?)[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~+-]+)+/?"
)
_NO_URL = "{!r} is not the URL of a repository"
_FORM = "it is written https://HOST/PATH or ssh://USER@HOST/PATH"
_ANY = "*"
_MACHINE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
#: What a receiver of traces listens for, below its address.
_TRACES = "/v1/traces"
#: Characters of a token that cannot be guessed.
_MIN_TOKEN_CHARS = 16
#: Letters and digits that are no word: what stands in an address and could be a key.
_KEY_LENGTH = 16


def listed(value: object, other: str = "") -> tuple[str, ...]:
    """Return a list of hosts, each as it is compared. Raises ``ValueError``."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"it must be {other}a list of host names")
    return tuple(map(str, policy.parsed(value)))


def reach(value: object) -> Network:
    """Return true, false, or a list of hosts that may be reached. Raises ``ValueError``."""
    return value if isinstance(value, bool) else listed(value, "true, false or ")


def loopback(host: str) -> bool:
    """Return whether only this machine reaches a host's address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parted(place: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, an address of IPv6 in brackets.

    Raises ``ValueError``.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+):([0-9]{1,5})", place)
    if found is None or int(found[2]) > _HIGHEST_PORT:
        raise ValueError(place)
    found[1].encode("idna")  # it raises for a name of which a part is empty, or too long
    return found[1].strip("[]"), int(found[2])


def is_place(text: str, least: int = 1) -> bool:
    """Return whether something is ``HOST:PORT``; a port below ``least`` is none."""
    try:
        return parted(text)[1] >= least
    except ValueError:
        return False


def is_address(url: str) -> bool:
    """Return whether something is the address of a webhook."""
    return bool(re.fullmatch(r"https?://[^\s/@?#]+([/?]\S*)?", url)) and url.isascii()


def _is_repository(url: str) -> bool:
    return bool(_URL.fullmatch(url)) and not any(part in {".", ".."} for part in url.split("/"))


def _is_pattern(text: str) -> bool:
    return _is_repository(f"{text.removesuffix(_ANY)}any" if text.endswith(f"/{_ANY}") else text)


def repository_problem(url: str, patterns: Iterable[str]) -> Problem | None:
    """Return why no task may name a URL, if that is so."""
    if not _is_repository(url):
        return Problem("", _NO_URL.format(url), _FORM)
    allowed = tuple(patterns)
    for pattern in allowed:
        if pattern.endswith(f"/{_ANY}") and url.startswith(pattern.removesuffix(_ANY)):
            return None
        if url.rstrip("/") == pattern.rstrip("/"):
            return None
    words = ", ".join(allowed) or "which is empty"
    return Problem("", f"{url} is not in [workspace] repos, {words}", "add it there")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsSection(Section):
    """``[paths]``: the spool's folders."""

    inbox: Folder = "inbox"
    outbox: Folder = "outbox"
    state: Folder = ".batchd"

    @classmethod
    def own(cls, environ: Mapping[str, str]) -> PathsSection | None:
        """Return the folders of the user's own spool; None: this user has no home."""
        top = trust.own_spool(environ)
        return cls(**{f.name: str(top / str(f.default)) for f in fields(cls)}) if top else None

    def is_own(self, environ: Mapping[str, str]) -> bool:
        """Return whether what is dropped lands in the user's own spool."""
        mine = PathsSection.own(environ)
        return mine is not None and (self.inbox, self.state) == (mine.inbox, mine.state)

    def prepare(self, environ: Mapping[str, str]) -> None:
        """Make the folder of the user's own spool, for them alone,
        where that is meant and missing.

        Raises ``OSError``.
        """
        top = trust.own_spool(environ)
        if top and self.is_own(environ) and not top.is_dir():
            top.parent.mkdir(parents=True, exist_ok=True)
            top.mkdir(mode=0o700, exist_ok=True)

    def nested(self, mirrors: str) -> Iterator[tuple[Place, Problem]]:
        """Yield folders within one another, with that of ``[workspace] mirrors``."""
        paths = {f.name: getattr(self, f.name) for f in fields(self)} | {"mirrors": mirrors}
        hanging = silent_paths.among([*paths.values()])
        # Without an answer no link is followed.
        folders = {
            key: os.path.abspath(path) if path in hanging else os.path.realpath(path)
            for key, path in paths.items()
        }
        mirrors = folders.pop("mirrors")
        for key, folder in folders.items():
            for other, outer in folders.items():
                below = key != other and Path(folder).is_relative_to(outer)
                if below and (key > other or folder != outer):
                    why = f"it must not be in or equal {other}, {outer}"
                    yield ("paths", key), Problem("", why)
        for other, outer in folders.items():
            if Path(mirrors).is_relative_to(outer) or Path(outer).is_relative_to(mirrors):
                why = f"it must not be in, hold or equal {other}, {outer}"
                yield ("workspace", "mirrors"), Problem("", why)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSection(Section):
    """``[agent]``: who does the work."""

    model: Name = "openai/gpt-6-luna"
    effort: AskedEffort = ""
    service_tier: Tier = "standard"
    tier_fallback: Fallback = "never"
    agents_md: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSection(Section):
    """An entry of ``[pool] machines``: where workers run beside those of this machine."""

    command: Annotated[tuple[Name, ...], MinLen(1)] = field(repr=False)
    """What is run here, once for each worker, and reaches ``batchd worker`` there."""
    processes: Annotated[int, Ge(1), Le(1024)] = 1
    """Workers there."""
    name: str = ""
    """What it is called, and tasks may ask for; empty: HOST, where the command is ``ssh HOST``."""

    @property
    def called(self) -> str:
        """Its name; empty: it has none."""
        program, *rest = self.command
        host = rest[0] if rest and PurePath(program).name == "ssh" else ""
        return self.name or ("" if host.startswith("-") else host.rpartition("@")[2])

    @property
    def shown(self) -> list[str]:
        """Its command as it may be shown: what stands between may be anything."""
        program, *rest = self.command
        return [PurePath(program).name, *["…"] * (len(rest) > 1), *rest[-1:]]

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield that it has no name, and keys in its command."""
        if not _MACHINE.fullmatch(self.called):
            why = f"{self.called!a} is no name for it" if self.called else "it has no name"
            if not self.called and PurePath(self.command[0]).name == "ssh":
                why = "options stand before its host, so it has no name"
            fix = "give it one of letters, digits, '.', '_' and '-', as in name = \"node7\""
            yield ("name",), Problem("", why, fix)
        for word in self.command:
            # Not ssh's `-o NAME=VALUE`, whose names are ssh's own.
            for name in filter(masking.names_secret, re.findall(r"([A-Z][A-Z0-9_]*)=", word)):
                why = f"it gives {name} a value, which every process of this machine can read"
                fix = "have it set there, or put the key into a file that both machines have"
                yield ("command",), Problem("", why, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSection(Section):
    """``[pool]``: worker processes."""

    engine: Literal["local", "ray"] = "local"
    processes: Annotated[int, Ge(0), Le(1024)] = 4
    agents_per_process: Annotated[int, Ge(1), Le(1000)] = 1
    max_attempts: Positive = 3
    rest_s: Amount = 0.0
    drain_s: Amount = 30.0
    heartbeat_timeout_s: Annotated[float, Gt(1)] = 30.0
    max_tasks_per_process: Count = 1000
    max_rss_mb: Count = 1024
    machines: tuple[MachineSection, ...] = ()

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield that nothing could run, and machines of one name."""
        if self.engine == "ray" and not self.processes:
            why = "the Ray cluster has room for no worker"
            yield ("processes",), Problem("", why, "set it to 1 or more")
        names = [machine.called for machine in self.machines]
        for index, name in enumerate(names):
            if name in names[:index] and _MACHINE.fullmatch(name):
                why, fix = f"another machine is called {name}", "raise its processes, or name it"
                yield ("machines", index, "name"), Problem("", why, fix)
        if not self.processes and not self.machines:
            why = "without processes, and without [pool] machines, no task could run"
            yield ("processes",), Problem("", why, "set one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySection(Section):
    """``[ray]``: the cluster that workers run on, where ``[pool] engine`` is ``ray``."""

    address: Name = "auto"
    min_processes: Count = 0
    cpus_per_process: Annotated[float, Ge(0), Le(1024)] = 1.0
    memory_mb_per_process: Count = 512
    token_file: KeyFile = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorSection(Section):
    """``[governor]``: what follows a failed call."""

    max_retries: Count = 6
    first_backoff_s: Span = 1.0
    max_backoff_s: Span = 60.0
    probe_s: Span = 15.0
    max_probe_s: Span = 600.0
    max_parked_s: Amount = 604_800.0


def left_open() -> dict[str, Any]:
    """Return what each limit may be where it may be left open: within its bounds, or None.

    By name.
    """
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(records.TaskLimits, include_extras=True).items():
        *bounds, meaning = kind.__metadata__
        kinds[name] = Annotated[Annotated[kind.__origin__, *bounds] | None, meaning]
    return kinds


def _with_limits(cls: type[_Table]) -> type[_Table]:
    """Make a class the dataclass of all limits; each may be left open."""
    cls.__annotations__ = left_open()
    for name in cls.__annotations__:
        setattr(cls, name, None)
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


@_with_limits
class LimitsCeilingSection(Section):
    """``[limits.ceiling]``: no task may ask for more. What is left open, or 0, binds nothing."""

    def binding(self) -> dict[str, Any]:
        """Return the ceilings that bind, by name."""
        return {f.name: cap for f in fields(records.TaskLimits) if (cap := getattr(self, f.name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSection(records.TaskLimits, Section):
    """``[limits]``: defaults for tasks; 0 means no limit."""

    ceiling: LimitsCeilingSection = field(default_factory=LimitsCeilingSection)

    def record(self) -> records.TaskLimits:
        """Return the defaults alone, as tasks carry them."""
        return records.TaskLimits(
            **{f.name: getattr(self, f.name) for f in fields(records.TaskLimits)}
        )

    def lowered(self, limits: records.TaskLimits) -> records.TaskLimits:
        """Return the limits, each lowered to the ceiling."""
        low = {
            name: min(getattr(limits, name) or most, most)
            for name, most in self.ceiling.binding().items()
        }
        return replace(limits, **low) if low else limits


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSection(Section):
    """``[budget]``: money over all tasks."""

    per_day_usd: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection(Section):
    """``[evaluation]``: who says that a task is done."""

    by: Evaluator = "judge"
    judge_model: str = ""
    judge_effort: AskedEffort = ""
    check_in: CheckIn = "apart"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSection(Section):
    """``[cost]``: what results compare their cost with."""

    compare: tuple[str, ...] = (
        "openai/gpt-6-luna",
        "openai/gpt-6.1-terra",
        "openai/gpt-6.1-sol",
        "anthropic/claude-haiku-5-5",
        "anthropic/claude-sonnet-5-5",
        "anthropic/claude-opus-5-5",
        "deepseek/deepseek-flash",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSection(Section):
    """``[report]``: the page that every finished batch gets."""

    enabled: bool = True
    transcripts_mb: Annotated[float, Ge(0), Le(500)] = 8.0
    timeout_s: Span = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSection(records.SandboxKeys, Section):
    """``[sandbox]``: where model-written commands run."""

    network: Annotated[Network, Reads(reach)] = False
    private_hosts: Annotated[tuple[str, ...], Reads(listed)] = ()

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield what of ``show`` and ``hide`` is no path of the machine's that could be shown."""
        for key, paths in (("show", self.show), ("hide", self.hide)):
            for index, path in enumerate(paths):
                problem = _shown_wrong(key, path)
                if problem is None and key == "hide" and path in self.show:
                    problem = Problem("", f"{path} is in show too", "name it in one of them")
                if problem:
                    yield (key, index), problem


def _shown_wrong(key: str, path: str) -> Problem | None:
    if not any(path == top or path.startswith(f"{top}/") for top in SHOWABLE):
        places = f"{', '.join(SHOWABLE[:-1])} or {SHOWABLE[-1]}"
        why, fix = f"{path!r} is not an absolute path below {places}", 'as in "/opt/tools"'
    elif os.path.normpath(path) != path:
        why = f"{path!r} is not the shortest form of this path"
        fix = f'write "{os.path.normpath(path)}"'
    elif path == "/etc":
        why = "/etc holds secrets, and what every command needs"
        fix = "name the parts of it"
    elif path == "/usr" and key == "hide":
        why, fix = "without /usr no command could run", "name the parts of it"
    elif path in _MADE:
        why, fix = f"{path} is not the machine's own: batchd makes it", "leave it out"
    else:
        return None
    return Problem("", why, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSection(Section):
    """``[workspace]``: the directories and repositories
    that tasks may name, and what they get of them.
    """

    root: Folder = "."
    allow: tuple[Folder, ...] = ()
    repos: tuple[Annotated[Name, Holds(_is_pattern, _NO_URL, f"{_FORM}, or ends in /*")], ...] = ()
    credentials: KeyFile = ""
    mirrors: FilePath = ""
    fetch_timeout_s: Span = 600.0
    max_mirror_bytes: Annotated[int, Ge(1 << 20)] = 10 << 30
    max_patch_bytes: Annotated[int, Ge(1 << 10), Le(256 << 20)] = 10 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSection(Section):
    """``[secrets]``: values that tasks may ask for in their ``env`` without knowing them."""

    env: tuple[Name, ...] = ()
    files: Mapping[str, Annotated[KeyFile, MinLen(1)]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSection(Section):
    """``[spool]``: how the inbox is watched."""

    watch: Literal["inotify", "poll"] = "inotify"
    settle_s: Annotated[float, Ge(0), Le(3600)] = 1.0
    scan_s: Annotated[float, Ge(0.05), Le(3600)] = 5.0
    max_file_bytes: Annotated[int, Ge(1), Le(1 << 30)] = 64 << 20
    max_parse_s: Annotated[float, Ge(1), Le(3600)] = 60.0
    max_parse_mb: Annotated[int, Ge(512), Le(1 << 20)] = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSection(Section):
    """``[store]``: what is remembered."""

    retention_days: Amount = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection(Section):
    """``[log]``: what is logged, and how."""

    level: LogLevel = "info"
    format: LineFormat = "auto"


#: What a receiver can be notified of.
EventName: TypeAlias = Literal[
    "batch_completed",
    "batch_failed",
    "batch_rejected",
    "budget_reached",
    "provider_parked",
    "provider_resumed",
    "daemon_started",
]
Kind: TypeAlias = Literal["webhook", "command", "apprise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSection(Section):
    """``[notify.NAME]``: one receiver."""

    kind: Kind
    on: tuple[EventName, ...] = get_args(EventName)
    max_per_minute: Annotated[int, Ge(1), Le(1000)] = 10
    timeout_s: Annotated[float, Gt(0), Le(600)] = 30.0
    give_up_s: Amount = 86_400.0
    url: str = field(default="", repr=False)
    url_env: Variable = ""
    url_file: KeyFile = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_env: Variable = ""
    secret_file: KeyFile = ""
    command: tuple[Name, ...] = ()

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield what its kind lacks, or does not know."""
        defaults = {f.name: f.default for f in fields(self)} | {"headers": {}}
        for other in sorted(defaults.keys() - {*_COMMON, *_OWN[self.kind]}):
            if getattr(self, other) != defaults[other]:
                what = f"kind {self.kind!r} has no such key"
                yield (other,), Problem("", what, f"it has {', '.join(_OWN[self.kind])}")
        if self.kind == "command":
            if not self.command:
                fix = 'as in ["/usr/local/bin/page", "me"]'
                yield ("command",), Problem("", "this key is needed", fix)
            return
        if sum(bool(getattr(self, key)) for key in _ADDRESS) != 1:
            fix = "set url, url_env or url_file"
            yield ("url",), Problem("", "it has no address, or more than one", fix)
        if self.kind == "webhook" and self.url and not is_address(self.url):
            why = "it must be http(s)://HOST[:PORT]/PATH, without user or password"
            yield ("url",), Problem("", why)

    def secret(self, environ: Mapping[str, str]) -> str:
        """Return the key for signatures, read now; empty: none. Raises ``NotPossibleError``."""
        return _present("the key for signatures", self.secret_env, self.secret_file, environ)

    def address(self, environ: Mapping[str, str]) -> str:
        """Return where a webhook or an Apprise service is, read now.

        Raises ``NotPossibleError``.
        """
        if self.url:
            return self.url
        url = _present("the address", self.url_env, self.url_file, environ)
        if self.kind == "webhook" and not is_address(url):
            place = self.url_env or self.url_file
            raise NotPossibleError(
                f"{place} holds no address of a webhook: http(s)://HOST[:PORT]/PATH"
            )
        return url

    def hidden(self, environ: Mapping[str, str]) -> Iterator[str]:
        """Yield what no text may show, as far as it can be had now."""
        with contextlib.suppress(NotPossibleError):
            yield self.secret(environ)
        yield from masking.named(self.headers)
        try:
            url = self.address(environ)
        except NotPossibleError:
            return
        yield url
        least = _KEY_LENGTH if self.url else masking.MIN_SECRET_CHARS
        for part in re.split(r"[\s/:@?&=,]+", url):
            if len(part) >= least and masking.looks(part):
                yield part
        # A password is one, though it be made of words.
        passwords = re.findall(r"://[^\s/:@]*:([^\s/?#]+)@", url)
        for name, value in re.findall(r"[?&]([^\s=&]+)=([^\s&]+)", url):
            if name == "pass" or masking.names_secret(name):
                passwords.append(value)
        for password in passwords:
            yield from (password, unquote(password))


_ADDRESS = ("url", "url_env", "url_file")
#: The keys that each way has of its own.
_OWN: Mapping[Kind, tuple[str, ...]] = {
    "webhook": (*_ADDRESS, "headers", "secret_env", "secret_file"),
    "command": ("command",),
    "apprise": _ADDRESS,
}
_COMMON = ("kind", "on", "max_per_minute", "timeout_s", "give_up_s")


def _present(what: str, env: str, file: str, environ: Mapping[str, str]) -> str:
    value, place = operator_files.secret(what, file=file, env=env, environ=environ)
    if place and not value:
        raise NotPossibleError(f"{what} is missing: set {place}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSection(Section):
    """``[metrics]``: figures for Prometheus."""

    listen: Annotated[
        str, Holds(is_place, "it must be HOST:PORT", "as in 127.0.0.1:9464 or [::1]:9464")
    ] = ""
    hosts: tuple[Name, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen, as sockets want it."""
        return parted(self.listen)

    @property
    def exposed(self) -> bool:
        """Whether other machines may look."""
        return bool(self.listen) and not loopback(self.address[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesSection(Section):
    """``[traces]``: spans for an OpenTelemetry receiver."""

    endpoint: Annotated[
        str,
        Holds(
            re.compile(r"https?://[^\s/@?#]+(/[^\s?#]*)?").fullmatch,
            "it must be http(s)://HOST[:PORT][/PATH]",
            "as in http://127.0.0.1:4318",
        ),
    ] = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers_env: Variable = ""
    headers_file: KeyFile = ""
    service: Name = "batchd"
    ratio: Annotated[float, Ge(0), Le(1)] = 1.0
    content: bool = False

    @property
    def address(self) -> str:
        """The whole address that spans are sent to."""
        base = self.endpoint.rstrip("/")
        return base if base.endswith(_TRACES) else base + _TRACES

    def all_headers(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return all headers, those of the variable or the file read now.

        Raises ``NotPossibleError``.
        """
        text, place = operator_files.secret(
            "[traces]: the headers", file=self.headers_file, env=self.headers_env, environ=environ
        )
        if place and not text:
            raise NotPossibleError(f"[traces]: {place} holds no headers: set it")
        return {**self.headers, **_parsed(text, place)}

    def hidden(self, environ: Mapping[str, str]) -> Iterator[str]:
        """Yield what no text may show, as far as it can be had now."""
        try:
            headers = self.all_headers(environ)
        except NotPossibleError:
            headers = dict(self.headers)
        for name, value in headers.items():
            # What came from a variable or a file was put there because it is a secret.
            if name not in self.headers or masking.names_secret(name) or masking.looks(value):
                yield value
                yield from value.split()[1:]  # behind `Bearer`


def _parsed(text: str, place: str) -> dict[str, str]:
    """Return headers as OTEL_EXPORTER_OTLP_HEADERS writes them,
    values in percent-encoding where need be.
    """
    headers = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        name, found, value = pair.partition("=")
        name, value = name.strip(), unquote(value.strip())
        # Not quoted: it is a secret.
        if not (found and re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", name, re.ASCII)):
            raise NotPossibleError(f"[traces]: {place} holds no headers: NAME=VALUE,NAME=VALUE")
        if not (value.isascii() and value.isprintable()):
            raise NotPossibleError(
                f"[traces]: the value of {name} in {place} cannot be sent: use ASCII alone"
            )
        headers[name] = value
    return headers


#: What browsers may order where ``[web] orders`` is true, and what it can name beside that.
WEB_ORDERS = ("cancel", "pause", "resume", "retry")
_NAMED_ORDERS = (*WEB_ORDERS, "apply", "submit")


def _orders(value: object) -> bool | tuple[str, ...]:
    """Return what ``[web] orders`` says. Raises ``ValueError``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(each in _NAMED_ORDERS for each in value):
        return tuple(value)
    given = f", not {value!r}" if isinstance(value, list | tuple) else ""
    names = ", ".join(map(repr, _NAMED_ORDERS))
    raise ValueError(f"it must be true, false or a list of {names}{given}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSection(Section):
    """``[web]``: the page of `batchd web`."""

    listen: Annotated[
        Name,
        # Port 0: any that is free.
        Holds(partial(is_place, least=0), "it must be HOST:PORT", "as in 127.0.0.1:8040"),
    ] = "127.0.0.1:8040"
    token_env: Variable = ""
    token_file: KeyFile = ""
    open: bool = False
    orders: Annotated[bool | tuple[str, ...], Reads(_orders, words=True)] = False
    hosts: tuple[Name, ...] = ()

    @property
    def verbs(self) -> tuple[str, ...]:
        """What browsers may order."""
        return self.orders if isinstance(self.orders, tuple) else WEB_ORDERS * self.orders

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen, as sockets want it."""
        return parted(self.listen)

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield who would be let in without a token."""
        if self.open and is_place(self.listen, 0) and not loopback(self.address[0]):
            what = "everybody may look without a token on loopback only"
            yield ("open",), Problem("", what, "leave it out, and name a token_file")
        if self.orders and self.open:
            what = "orders are for those who know the token, and open = true asks for none"
            yield ("orders",), Problem("", what, "leave one of the two out")

    def token(self, environ: Mapping[str, str]) -> str:
        """Return the token that was configured, read now; empty where none was.

        Raises ``NotPossibleError``.
        """
        token, place = operator_files.secret(
            "[web]: the token", file=self.token_file, env=self.token_env, environ=environ
        )
        word = token.isascii() and token.isprintable() and " " not in token
        if place and not (word and len(token) >= _MIN_TOKEN_CHARS):
            raise NotPossibleError(
                f"[web]: {place} holds no token: one word of {_MIN_TOKEN_CHARS} characters of ASCII or more, "
                "as `openssl rand -hex 32` prints one"
            )
        return token


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSections(Section):
    """The sections that a config.toml may hold."""

    paths: PathsSection = field(default_factory=PathsSection)
    agent: AgentSection = field(default_factory=AgentSection)
    providers: Mapping[str, ProviderSection] = field(default_factory=presets)
    models: Mapping[str, ModelSection] = field(default_factory=dict)
    pool: PoolSection = field(default_factory=PoolSection)
    ray: RaySection = field(default_factory=RaySection)
    governor: GovernorSection = field(default_factory=GovernorSection)
    limits: LimitsSection = field(default_factory=LimitsSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    cost: CostSection = field(default_factory=CostSection)
    report: ReportSection = field(default_factory=ReportSection)
    sandbox: SandboxSection = field(default_factory=SandboxSection)
    workspace: WorkspaceSection = field(default_factory=WorkspaceSection)
    secrets: SecretsSection = field(default_factory=SecretsSection)
    spool: SpoolSection = field(default_factory=SpoolSection)
    store: StoreSection = field(default_factory=StoreSection)
    notify: Mapping[
        Annotated[
            Name,
            Holds(
                re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII).fullmatch,
                "a name has at most 64 letters, digits, _ and -",
            ),
        ],
        ReceiverSection,
    ] = field(default_factory=dict)
    log: LogSection = field(default_factory=LogSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    traces: TracesSection = field(default_factory=TracesSection)
    web: WebSection = field(default_factory=WebSection)
