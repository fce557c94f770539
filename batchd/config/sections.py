"""The sections of config.toml and their keys, each with its default and its meaning.

They are plain dataclasses, so that a process that only reads a configuration loads nothing heavy;
pydantic validates them in ``loading``. Money is in US dollars, ``_s`` marks seconds and
``_bytes`` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen

from batchd import records
from batchd.config.providers import ModelSection, ProviderSection, presets
from batchd.config.receivers import ReceiverSection
from batchd.config.telemetry import MetricsSection, TracesSection
from batchd.config.values import Fallback, HostList, Name, Reach, Section
from batchd.config.web_page import WebSection
from batchd.log import LineFormat, LogLevel
from batchd.records import AskedEffort, Backend, CheckIn, Evaluator, Tier
from batchd.records.tasks import Amount, Count, Positive, Span

_Table = TypeVar("_Table")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsSection(Section):
    """``[paths]``: the spool's folders."""

    inbox: Name = "inbox"
    """Where task files are dropped."""
    outbox: Name = "outbox"
    """Where results appear."""
    state: Name = ".batchd"
    """The store, the lock and the control socket. Not on NFS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSection(Section):
    """``[agent]``: who does the work."""

    model: Name = "openai/gpt-6-luna"
    """``provider/model``; a task may name its own."""
    effort: AskedEffort = ""
    """How much a model is to think; a task, or the model's table, may say otherwise.

    Empty: as its provider sees fit.
    """
    service_tier: Tier = "standard"
    """``standard``, ``flex`` (half the price, when there is room) or ``priority``;
    a task may name its own.
    """
    tier_fallback: Fallback = "never"
    """When a call whose tier has no room goes on at the standard price:
    ``never``, or after so many seconds.
    """
    agents_md: bool = True
    """Whether a task is given what AGENTS.md in its directory says,
    and the skills there by name.
    """


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSection(Section):
    """``[pool]``: worker processes."""

    engine: Literal["local", "ray"] = "local"
    """Where worker processes are started: on this machine, or on a Ray cluster, ``[ray]``."""
    processes: Annotated[int, Ge(0), Le(1024)] = 4
    """Worker processes at most, started when first needed; 0: all are on ``machines``."""
    agents_per_process: Annotated[int, Ge(1), Le(1000)] = 1
    """Tasks that one process works on at a time."""
    max_attempts: Positive = 3
    """After so many deaths of its own worker, while it was at work, a task ends as ``error``."""
    rest_s: Amount = 0.0
    """The pause between two tasks of one agent slot."""
    drain_s: Amount = 30.0
    """What agents get to reach a durable point when the daemon stops."""
    heartbeat_timeout_s: Annotated[float, Gt(1)] = 30.0
    """A worker silent for longer is killed, and its tasks resumed;
    on another machine, its lease.
    """
    max_tasks_per_process: Count = 1000
    """A worker is replaced after so many tasks; 0: never."""
    max_rss_mb: Count = 1024
    """A worker is replaced when its resident memory passes this; 0: never."""
    machines: tuple[MachineSection, ...] = ()
    """Other machines that workers run on, which share this one's disks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySection(Section):
    """``[ray]``: the cluster that workers run on, where ``[pool] engine`` is ``ray``."""

    address: Name = "auto"
    """``HOST:PORT`` of its head; ``auto``: of the cluster whose node this machine is."""
    min_processes: Count = 0
    """Worker processes that stay without work; the others end, so that a cluster can shrink."""
    cpus_per_process: Annotated[float, Ge(0), Le(1024)] = 1.0
    """What one of them takes of its node."""
    memory_mb_per_process: Count = 512
    """Likewise."""
    token_file: str = ""
    """The cluster's token, for ``RAY_AUTH_MODE=token``; empty:
    as the environment says, or ``~/.ray/auth_token``.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorSection(Section):
    """``[governor]``: what follows a failed call."""

    max_retries: Count = 6
    """Retries of one call."""
    first_backoff_s: Span = 1.0
    """The wait before the first retry; it doubles, with jitter.

    Retry-After is honoured above it.
    """
    max_backoff_s: Span = 60.0
    """The longest wait between two retries."""
    probe_s: Span = 15.0
    """A provider that answered no call is tried again after this, then twice that, and so on."""
    max_probe_s: Span = 600.0
    """The longest wait between two tries;
    the first one after a refused key or a used-up account.
    """
    max_parked_s: Amount = 604_800.0
    """A provider parked for longer ends its tasks as ``error`` with the cause; 0: at once."""


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
    """``[limits.ceiling]``: binds every task."""

    def record(self) -> records.TaskLimits:
        """Return the defaults alone, as tasks carry them."""
        return records.TaskLimits(
            **{f.name: getattr(self, f.name) for f in fields(records.TaskLimits)},
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
    """A day in UTC; 0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection(Section):
    """``[evaluation]``: who says that a task is done."""

    by: Evaluator = "judge"
    """Of tasks without a ``check``. ``none`` accepts the agent's own word."""
    judge_model: str = ""
    """``provider/model``; empty: the task's own."""
    judge_effort: AskedEffort = ""
    """How much the judge is to think; empty: as the task's model."""
    check_in: CheckIn = "apart"
    """``task`` gives a ``check`` the HOME and /tmp of the task's commands,
    which can then make it pass.
    """


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
    """What the same tokens would have cost with these models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSection(Section):
    """``[report]``: the page that every finished batch gets."""

    enabled: bool = True
    """Whether ``report.html`` is written beside the results."""
    transcripts_mb: Annotated[float, Ge(0), Le(500)] = 8.0
    """Megabytes of transcripts in it, failures first; the rest are links to their files."""
    timeout_s: Span = 120.0
    """How long a batch's summary waits for its report; then there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSection(Section):
    """``[sandbox]``: where model-written commands run."""

    backend: Backend = "bwrap"
    """``none`` runs them unprotected, as the daemon's user."""
    user: Name = "nobody"
    """Who runs commands in fresh directories when batchd is root."""
    network: Reach = False
    """What tasks may ask for at most:
    false (nothing), a list of hosts (lists within it), true (everything).
    """
    private_hosts: HostList = ()
    """Hosts that may have private addresses, loopback included, which are refused otherwise."""
    show: tuple[str, ...] = ()
    """Paths below /etc and /opt that commands see, read-only, beside /usr and a little of /etc."""
    hide: tuple[str, ...] = ()
    """Paths below /usr, /etc and /opt that they do not see.

    Of ``show`` and ``hide`` the longer path counts.
    """
    cgroup: Name = "auto"
    """What holds commands to their limits together: ``auto`` (the cgroup that systemd delegates,
    else a watcher), ``none`` (a watcher), or the path of a cgroup of version 2 that is its own."""
    require_cgroup: bool = False
    """Whether batchd refuses to start where it has no cgroup for commands."""
    keep_processes: bool = True
    """Whether what a command leaves running, as a server, goes on until the task is evaluated;
    false: it ends with its command.
    """
    max_processes: Positive = 256
    """Processes of one command at a time, threads included."""
    max_memory_bytes: Annotated[int, Ge(1 << 24)] = 2 << 30
    """Memory of all processes of one command together; the data segment of each one too."""
    max_cpu_s: Amount = 3600.0
    """Processor time of all processes of one command together; 0: no limit."""
    max_cpus: Annotated[float, Ge(0), Le(100_000)] = 0.0
    """Processors that one command may keep busy; 0: no limit. Only a cgroup can hold it."""
    max_file_bytes: Annotated[int, Ge(1 << 16)] = 1 << 30
    """Size of one file that a command writes."""
    max_disk_bytes: Annotated[int, Ge(1 << 20)] = 10 << 30
    """What a task may put on the disk: what its directory grows by, and its /tmp."""
    tmp_bytes: Annotated[int, Ge(1 << 16)] = 2 << 30
    """Size of a task's /tmp, which lasts as long as the task."""
    max_output_bytes: Annotated[int, Ge(1 << 10), Le(1 << 22)] = 16 << 10
    """What is kept of a command's output; the middle is cut out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSection(Section):
    """``[workspace]``: the directories and repositories
    that tasks may name, and what they get of them.
    """

    root: Name = "."
    """A task's relative ``dir`` lies below it."""
    allow: tuple[Name, ...] = ()
    """More places below which an absolute ``dir`` may lie."""
    repos: tuple[Name, ...] = ()
    """URLs (https, ssh) of repositories that tasks may name;
    ``*`` at the end stands for whatever follows.
    """
    credentials: str = ""
    """A file of users and passwords for these, as ``git credential-store`` keeps them;
    ssh uses the daemon's own keys.
    """
    mirrors: str = ""
    """Where repositories are kept that tasks are given clones of;
    empty: beside the state directory, ``STATE-mirrors``.
    """
    fetch_timeout_s: Span = 600.0
    """How long it may take to fetch a repository, or to copy a directory."""
    max_mirror_bytes: Annotated[int, Ge(1 << 20)] = 10 << 30
    """The size of one repository, or copied directory, that is kept."""
    max_patch_bytes: Annotated[int, Ge(1 << 10), Le(256 << 20)] = 10 << 20
    """The size of a task's patch; changes of more files are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSection(Section):
    """``[secrets]``: values that tasks may ask for in their ``env`` without knowing them."""

    env: tuple[Name, ...] = ()
    """Environment variables of batchd's own, for ``{"from_env": NAME}``."""
    files: Mapping[str, Name] = field(default_factory=dict)
    """Names and files of one value each, for ``{"from_file": NAME}``; a relative path is looked for
    among systemd's credentials first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSection(Section):
    """``[spool]``: how the inbox is watched."""

    watch: Literal["inotify", "poll"] = "inotify"
    """``poll`` for NFS and other file systems that send no events."""
    settle_s: Annotated[float, Ge(0), Le(3600)] = 1.0
    """A file that is not known to be complete is taken when it has not changed for so long."""
    scan_s: Annotated[float, Ge(0.05), Le(3600)] = 5.0
    """The time between two looks at the whole inbox."""
    max_file_bytes: Annotated[int, Ge(1), Le(1 << 30)] = 64 << 20
    """A larger task file is refused unread."""
    max_parse_s: Annotated[float, Ge(1), Le(3600)] = 60.0
    """Processor time that reading one task file may take; one that takes more is refused."""
    max_parse_mb: Annotated[int, Ge(512), Le(1 << 20)] = 4096
    """Memory that reading one task file may take; one that takes more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSection(Section):
    """``[store]``: what is remembered."""

    retention_days: Amount = 30.0
    """How long journals of published tasks are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection(Section):
    """``[log]``: what is logged, and where."""

    level: LogLevel = "info"
    """The least important lines to write."""
    format: LineFormat = "auto"
    """``auto``: words on a terminal, JSON lines elsewhere."""
    file: str = ""
    """Gets JSON lines too; survives logrotate."""


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
    notify: Mapping[str, ReceiverSection] = field(default_factory=dict)
    log: LogSection = field(default_factory=LogSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    traces: TracesSection = field(default_factory=TracesSection)
    web: WebSection = field(default_factory=WebSection)
