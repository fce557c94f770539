"""Log lines: what they report, how they are written, and what none may show.

Every line's ``event`` is an ``Action``, everything else stands in fields. Every line about a task
carries ``batch``, ``task`` and ``worker``.
structlog is imported by those who log; who only needs ``escape`` starts without it.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from batchd import console
from batchd.errors import cut
from batchd.masking import Masker

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Action(enum.StrEnum):
    """A log action: what a line reports, in one list for people and machines.

    Their words are published: an action is added, never renamed or removed.
    """

    DAEMON_STARTED = "daemon_started"
    DAEMON_STOPPING = "daemon_stopping"
    CONFIG_RELOADED = "config_reloaded"
    #: Somebody gave an order: its ``verb``, who (``uid``, ``pid``), with what, and what came of it.
    COMMAND_DONE = "command_done"
    COMMAND_REFUSED = "command_refused"
    #: At the level debug: somebody asked something that changes nothing.
    QUESTION_ANSWERED = "question_answered"
    BATCH_RECEIVED = "batch_received"
    BATCH_REJECTED = "batch_rejected"
    BATCH_FINISHED = "batch_finished"
    TASK_STARTED = "task_started"
    ROUND_STARTED = "round_started"
    #: At the level debug: what the agent does next, its ``step`` and ``detail``.
    STEP_STARTED = "step_started"
    #: At the level debug: a call asks for its turn and its money,
    #: and gets them, after ``waited_s``, or does not.
    PERMIT_ASKED = "permit_asked"
    PERMIT_GRANTED = "permit_granted"
    PERMIT_DENIED = "permit_denied"
    MODEL_CALLED = "model_called"
    MODEL_FAILED = "model_failed"
    #: A provider's count of tokens is more than its call can have come to:
    #: what was set aside is booked.
    USAGE_NOT_BELIEVED = "usage_not_believed"
    COST_NOT_BELIEVED = "cost_not_believed"
    #: A provider counts more output than its request allowed: the ``message`` has the fix.
    ANSWER_OVERLONG = "answer_overlong"
    #: A model refuses a part of what is sent, as ``refuses`` says, and works without it.
    MODEL_REFUSES = "model_refuses"
    #: A provider left out items of earlier answers that were sent back to it,
    #: for the ``reasons`` that it gives.
    ITEMS_REMOVED = "items_removed"
    TOOL_RAN = "tool_ran"
    #: A command wanted to reach hosts that its task may not reach.
    NETWORK_REFUSED = "network_refused"
    #: A command used more of the machine than it may, as its ``message`` says.
    LIMIT_PASSED = "limit_passed"
    ROUND_EVALUATED = "round_evaluated"
    CONTEXT_COMPACTED = "context_compacted"
    CLOCK_MOVED = "clock_moved"
    TASK_PARKED = "task_parked"
    TASK_FINISHED = "task_finished"
    RATE_LIMITED = "rate_limited"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROVIDER_PARKED = "provider_parked"
    MODEL_PARKED = "model_parked"
    BUDGET_REACHED = "budget_reached"
    #: A receiver was notified: the ``receiver``, the ``notification``'s id, its ``subject``.
    NOTIFIED = "notified"
    #: A receiver could not be notified, yet or for good:
    #: ``message``, and ``trying_again`` or the ``mend``.
    NOTIFY_FAILED = "notify_failed"
    WORKER_STARTED = "worker_started"
    WORKER_DIED = "worker_died"
    #: No worker comes up on the cluster: the ``message`` says why, and what helps.
    CLUSTER_TROUBLE = "cluster_trouble"
    #: No task can run on a ``node``, as the ``message`` says: its workers are sent away.
    NODE_TROUBLE = "node_trouble"
    INBOX_TROUBLE = "inbox_trouble"
    OUTBOX_TROUBLE = "outbox_trouble"
    STORE_TROUBLE = "store_trouble"
    #: What a task file or a task names does not answer, as on a disk over a lost network.
    PLACE_TROUBLE = "place_trouble"
    CONTROL_TROUBLE = "control_trouble"
    SANDBOX_TROUBLE = "sandbox_trouble"
    #: A repository, or the copy of a directory, is being fetched for a batch:
    #: its ``source``; and it is there, after ``waited_s``.
    MIRROR_FETCHING = "mirror_fetching"
    MIRROR_FETCHED = "mirror_fetched"
    #: No repository can be fetched for a while: the ``message`` says why, and what helps.
    MIRROR_TROUBLE = "mirror_trouble"
    #: A disk refuses a task's clone, copy or patch, or packs of 0.2.0 are dropped: its ``message``
    #: has the fix.
    DIRECTORY_TROUBLE = "directory_trouble"
    #: Workers do not come up: ``status`` says why, and what helps.
    WORKER_TROUBLE = "worker_trouble"
    #: Batches or claimed files of a store that was lost:
    #: the ``message`` says which, the ``mend`` has the fix.
    UNKNOWN_WORK = "unknown_work"
    #: A batch has no report; its results are none the worse.
    REPORT_TROUBLE = "report_trouble"
    #: A task or a file could move and has not for a minute,
    #: as the ``message`` says; or moves again.
    STALLED = "stalled"
    #: The outbox takes results, and not the file that says how the daemon stands.
    STATUS_UNWRITTEN = "status_unwritten"
    METRICS_TROUBLE = "metrics_trouble"
    TRACES_TROUBLE = "traces_trouble"
    #: A file or folder is open to whom it should not be: its ``path``, why, and the ``mend``.
    EXPOSED = "exposed"
    #: A warning of a library that we use, with its ``logger`` and ``message``.
    LIBRARY_WARNED = "library_warned"
    #: So many ``lines`` are missing here, since the reader of stderr stood still.
    LINES_LEFT_OUT = "lines_left_out"


#: Characters written at once: as bytes at most the 4 KB that a pipe has room for where it has any.
_CHUNK = 1024
#: The same for a terminal, whose room grows by 256 bytes; a line end takes two.
_TERMINAL_CHUNK = 60
#: How long a reader may stand still before lines are left out.
_PATIENCE_S = 1.0


class Stderr:
    """The writer of lines to ``sys.stderr``.

    A pager that shows its first page, a terminal at Ctrl-S: the kernel holds a process that writes
    to them until they read on, and a daemon would stand still with them. Here that is once, for a
    second; then lines are left out until they read again, and counted.
    """

    def __init__(self, notice: Callable[[int], str]) -> None:
        """``notice`` returns the line that says how many were left out."""
        self._notice = notice
        self._left_out = 0
        #: Whether the last line was written in part.
        self._torn = False

    def write(self, line: str) -> None:
        """Write a line, its end included, or leave it out."""
        try:
            self._write(line)
        except (OSError, ValueError):
            # Our stderr has no reader any more. That must not stop the work.
            return

    def _write(self, line: str) -> None:
        before = self._left_out
        if before:
            if not _taken(0.0):
                self._left_out += 1
                return
            line = ("\n" if self._torn else "") + self._notice(before) + line
        size = _TERMINAL_CHUNK if sys.stderr.isatty() else _CHUNK
        for start in range(0, len(line), size):
            if not _taken(_PATIENCE_S):
                self._left_out = before + 1
                self._torn = start > 0
                return
            sys.stderr.write(line[start : start + size])
            sys.stderr.flush()
        self._left_out = 0


def _taken(patience_s: float) -> bool:
    """Return whether what is written now is taken at once, or will be within ``patience_s``."""
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError):
        return True  # in memory: there is no reader
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(patience_s * 1000))


#: From which level on lines are written.
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
#: ``auto``: words on a terminal, JSON lines elsewhere; in systemd's journal with their priorities.
LineFormat: TypeAlias = Literal["auto", "json", "console"]

#: C0 and C1 controls, the separators that end a line, marks that turn the direction of text, and
#: lone surrogates: what could forge a line, steer a terminal, deceive a reader or break an encoder.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
#: The same, but for those that are line ends between the values of a JSON text.
_CONTROL_OF_JSON = re.compile(_CONTROL.pattern.replace("\x00-\x1f", ""))
#: The same, but for line ends and tabs, which belong to a text of several lines.
_CONTROL_OF_TEXT = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
#: Keys as most providers write them, and headers that carry one.
#: A net below the rule, not the rule.
_SECRET = re.compile(r"\b(sk-|[Bb]earer )[\w.-]{12,}")


#: By level, as in syslog(3): what ``journalctl -p`` asks for.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
#: Characters of one field of a line: a net, for lines are short, tracebacks included.
_MAX_FIELD_CHARS = 20_000
#: What no line may show.
_hidden = Masker()


@dataclass(slots=True)
class _Depth:
    """How much is written."""

    debug: bool = False


_depth = _Depth()


def detailed() -> bool:
    """Return whether lines of the level debug are written: else no one need make one."""
    return _depth.debug


def hide(secrets: Iterable[str]) -> None:
    """Leave these texts out of every line from now on."""
    _hidden.learn(secrets)


def masked(text: str) -> str:
    """Return a text without them."""
    return _hidden.text(text)


def escape(text: str) -> str:
    r"""Return ``text`` with control characters shown as ``\x1b`` and the like."""
    return _CONTROL.sub(lambda m: ascii(m.group())[1:-1], text)


def escape_text(text: str) -> str:
    """Return a text of several lines like that, its lines and tabs as they are."""
    return _CONTROL_OF_TEXT.sub(lambda m: ascii(m.group())[1:-1], text.replace("\r\n", "\n"))


def escape_json(text: str) -> str:
    r"""Return JSON in which such characters stand as ``\u202e``: it means the same,
    and can be shown on a terminal.
    """
    if text.isascii() and "\x7f" not in text:
        return text  # what is below a space, JSON itself has escaped
    return _CONTROL_OF_JSON.sub(lambda m: f"\\u{ord(m.group()):04x}", text)


def get_logger(**fields: object) -> FilteringBoundLogger:
    """Return a logger whose every line carries ``fields``."""
    import structlog  # 70 ms, which `batchd status` need not pay

    logger: FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def configure(level: LogLevel = "info", format: LineFormat = "auto") -> None:
    """Set logging up for this process; also to change it."""
    import structlog  # 70 ms, which `batchd status` need not pay

    _depth.debug = level == "debug"
    structlog.configure(
        processors=[partial(_write, _to_stderr(format))],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Libraries warn through logging; unless caught, their lines would stand raw among ours.
    root = logging.getLogger()
    if not any(isinstance(h, _Library) for h in root.handlers):
        root.addHandler(_Library(logging.WARNING))


def _to_stderr(form: LineFormat) -> Callable[[dict[str, Any]], None]:
    if form == "console" or (form == "auto" and sys.stderr.isatty()):
        return _columns()
    if form == "auto" and leads_to_journal(2):
        # sd-daemon(3): systemd takes the prefix off the line, and keeps it as the priority.
        return _rendered(lambda line: f"<{_PRIORITIES[line['level']]}>{_encode(line)}")
    return _rendered(_encode)


def leads_to_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a descriptor leads into systemd's journal,
    and not to where a shell redirected it.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))


def _write(
    sink: Callable[[dict[str, Any]], None],
    _logger: object,
    method: str,
    fields: MutableMapping[str, Any],
) -> str:
    """Complete a line and hand it on: the whole chain in one processor, for speed."""
    line: dict[str, Any] = {
        "timestamp": _now(),
        "level": method,
        "event": str(fields.pop("event", "")),
    }
    trace = ""
    if fields.get("exc_info"):
        import structlog  # loaded by now

        rest = dict(structlog.processors.format_exc_info(None, "", fields))
        fields, trace = rest, str(rest.pop("exception", ""))
    for key, value in fields.items():
        if isinstance(value, str):
            value = _hidden.text(cut(value, _MAX_FIELD_CHARS))  # what it was is not to be shown
            clean = str(value) if value.isascii() and value.isprintable() else escape(value)
            line[key] = (
                _SECRET.sub(r"\1[secret]", clean) if len(clean) > 12 else clean
            )  # as _SECRET
        else:
            line[key] = _hidden.value(value)
    if trace:
        shown = "\n".join(map(escape, _hidden.text(trace).split("\n")))
        line["exception"] = _SECRET.sub(r"\1[secret]", shown)
    sink(line)
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(line: dict[str, Any]) -> str:
    import msgspec

    try:
        return escape_json(msgspec.json.encode(line, enc_hook=str).decode()) + "\n"
    except (UnicodeEncodeError, TypeError, ValueError, msgspec.MsgspecError):
        # A lone surrogate or an odd key deep in a value: ASCII escapes carry anything.
        return json.dumps(line, default=str, skipkeys=True) + "\n"


def _rendered(render: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], None]:
    """Return what writes lines to stderr."""

    def notice(count: int) -> str:
        line = {"timestamp": _now(), "level": "warning", "event": str(Action.LINES_LEFT_OUT)}
        return render({**line, "lines": count})

    stderr = Stderr(notice)
    return lambda line: stderr.write(render(line))


def _columns() -> Callable[[dict[str, Any]], None]:
    terminal = sys.stderr.fileno() if sys.stderr.isatty() else None

    def render(line: dict[str, Any]) -> str:
        width = 0 if terminal is None else console.columns_of(terminal)
        text = escape_text(console.text(line, width))
        return text if terminal is None else console.coloured(text, line["level"])

    return _rendered(render)


def _placed(error: BaseException) -> str:
    """Return an error in a line, with where it was raised, of our own lines if it passed any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/batchd/" in f.filename] or frames
    at = f" ({own[-1].filename.rpartition('/')[2]}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{at}"


class _Library(logging.Handler):
    """Passes a library's warnings on as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            message = record.getMessage()
            if error is not None:
                message = f"{message.rstrip()}: {_placed(error)}"
            get_logger().warning(Action.LIBRARY_WARNED, logger=record.name, message=message)
        except (TypeError, ValueError):
            self.handleError(record)
