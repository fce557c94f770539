"""The command line: one module a command, each loaded only when it is called.

A command module has ``arguments(parser)`` and ``run(args) -> int``, the exit code: 0 all
completed, 1 some task did not, 2 wrong use or invalid input, 3 not possible here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from batchd import processes
from batchd.cli import refusals, surroundings
from batchd.console import columns_of, hanging
from batchd.errors import BatchdError, ForbiddenError, UsageError, near
from batchd.gone import GONE_COMMANDS, GONE_OPTIONS
from batchd.log import escape
from batchd.version import __version__

#: Each command with its line in the help; empty: it is an order, whose class has it.
COMMANDS: Mapping[str, str] = {
    "init": "make a spool: configuration, inbox, outbox, and a task file to try it",
    "serve": "watch the inbox and work on what is dropped, until stopped",
    "run": "run task files now, and watch; it needs no daemon",
    "submit": "check a task file and drop it into the inbox",
    "wait": "wait until batches have ended, and print their summaries",
    "status": "show batches, the tasks of one, or one task",
    "top": "show how things stand, live, and step in with a key",
    "logs": "show what tasks did, step by step",
    "search": "find a text in prompts, answers, commands and their outputs",
    "cost": "show what was spent, or what other models would have cost",
    "web": "show batches and tasks in a browser, live",
    "report": "write the report of a batch again, or of several batches or days, or a table for spreadsheets",
    "diff": "show what tasks have changed in their clones and copies",
    "apply": "put what tasks have changed into the repositories that they had clones of",
    "estimate": "estimate the cost and time of task files, before anything is paid",
    "check": "look for what would fail, and say how to fix it",
    "config": "show the values in force, and where each comes from",
    "trust": "trust the configuration that lies in a directory, or show which are trusted",
    "notify": "show who is notified of what, or send a test",
    "schema": "print the JSON Schema of a format: task files, results, events, what programs read",
    "completion": "print the shell completion of batchd's commands and names for bash, zsh or fish",
    **dict.fromkeys(
        ("cancel", "retry", "pause", "resume", "priority", "nice", "prune", "tune"), ""
    ),
    "worker": "work for a daemon on another machine, which starts it",
    "backup": "copy the store, beside a running daemon too",
    "restore": "put a backup in the store's place, and import the results in the outbox",
    "demo": "show the whole way with a stand-in model: no key, no network",
}

#: The modules that have several commands, as ``orders`` has the orders; each other command has one
#: of its own name.
_MODULES: Mapping[str, str] = {
    **dict.fromkeys(("schema", "completion"), "shipped"),
    **dict.fromkeys(("backup", "restore"), "backups"),
}

#: For the ``--help`` of each but the orders: lines that work as they stand, with names of the
#: reader's own; of the others the command alone.
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": (
        "batchd init ~/spool",
        "batchd init --systemd --user --every '02:00' nightly.json ~/spool",
    ),
    "serve": ("batchd serve", "batchd --config ~/spool/config.toml serve"),
    "run": ("batchd run task.json", "batchd run --first 3 task.json"),
    "submit": (
        "batchd submit task.json --wait",
        "batchd submit --prompt 'Write tests.' --each 'src/*' --check 'make test'",
    ),
    "wait": ("batchd wait evening",),
    "status": ("batchd status", "batchd status evening", "batchd status evening/001"),
    "top": ("batchd top", "batchd top --once"),
    "logs": ("batchd logs evening/001", "batchd logs -f evening"),
    "search": ("batchd search ModuleNotFoundError", "batchd search 'rate limit' evening"),
    "cost": (
        "batchd cost --since today",
        "batchd cost evening --compare openai/gpt-6-luna anthropic/claude-haiku-5-5",
    ),
    "report": ("batchd report evening", "batchd report --since yesterday --csv"),
    "diff": ("batchd diff evening/001",),
    "apply": ("batchd apply evening/001",),
    "estimate": ("batchd estimate task.json",),
    "trust": ("batchd trust ~/spool",),
    "notify": ("batchd notify", "batchd notify --test me"),
    "schema": ("batchd schema task",),
    "completion": ("batchd completion bash",),
    "backup": ("batchd backup ~/batchd.backup",),
    "restore": ("batchd restore ~/batchd.backup",),
}

#: How like a word must be to what is meant.
_NEAR = 0.7
#: Commands of other programs, with what to use here.
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("doctor", "validate"), "check"),
    **dict.fromkeys(("start", "up"), "serve"),
    **dict.fromkeys(("ls", "list", "ps", "results"), "status"),
    **dict.fromkeys(("kill", "rm"), "cancel` or `batchd prune"),
    **dict.fromkeys(("add", "new"), "submit"),
    "stop": "pause --all`; or press Ctrl-C at `batchd serve",
    "show": "status` or `batchd logs",
}

#: Said to who names no command.
_WAY_IN = """\
batchd is a print spooler for LLM agents: drop task.json, collect results.

To begin
  batchd demo              the whole way with a stand-in model: no key needed
  batchd init ~/spool      make a spool: configuration, inbox, outbox, a sample
  batchd check             look for what would fail, and how to fix it

To work
  batchd run task.json     work on a task file here and now, and watch
  batchd serve             watch the inbox, until stopped
  batchd submit task.json  drop a task file into the inbox

To look
  batchd status            batches, the tasks of one, or one task
  batchd top               the same, live; a key steps in
  batchd logs BATCH/TASK   what a task did, step by step
  batchd web               all of it in a browser

`batchd --help` lists all commands, `batchd COMMAND --help` explains one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``SystemExit`` where argparse ends it."""
    given = sys.argv[1:] if argv is None else argv
    try:
        surroundings.repair()
        with processes.undisturbed():
            args = _parse(given)
            command = _module(args.command)
        code = int(command.run(args))
        sys.stdout.flush()
    except ForbiddenError as error:
        _complain(refusals.with_fix(str(error), error.user, given))
        return error.exit_code
    except BatchdError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except PermissionError as error:
        name = next((word for word in given if word in COMMANDS), "batchd")
        _complain(refusals.closed(name, error, given))
        return 3
    except OSError as error:
        # A folder that may not be read, a disk that is full: of the user's world, not a bug.
        _complain(refusals.failed(error))
        return 3
    return code


def _module(command: str) -> ModuleType:
    """Return the module of a command, loaded now."""
    name = _MODULES.get(command, command) if COMMANDS[command] else "orders"
    return importlib.import_module(f"batchd.cli.{name}")


def about(command: str) -> tuple[str, Sequence[str]]:
    """Return a command's line in the help, and its examples."""
    if COMMANDS[command]:
        return COMMANDS[command], _EXAMPLES.get(command, (f"batchd {command}",))
    from batchd.control.orders import ORDERS  # most commands give none

    return ORDERS[command].line(), ORDERS[command].examples


def _complain(message: str) -> None:
    """Print what went wrong.

    A message may have lines, and hold what files and servers have said.
    """
    width = columns_of(sys.stderr.fileno()) if sys.stderr.isatty() else sys.maxsize
    for line in map(escape, f"batchd: {message}".split("\n")):
        print(*hanging(line, width), sep="\n", file=sys.stderr)


class _Command(argparse.ArgumentParser):
    """The parser of one command,
    which says what an argument may be meant for that it does not have.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and raise ``UsageError`` for what is not known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = next((each for each in unknown if each.startswith("-")), unknown[0])
            option = word.partition("=")[0]
            if instead := GONE_OPTIONS.get(f"{self.prog.partition(' ')[2]} {option}"):
                raise UsageError(f"{option} is gone: {instead}")
            fix = f"`{self.prog} --help` lists them"
            if not option.startswith("-"):
                raise UsageError(f"unexpected argument {option!a}: {fix}")
            fix = near(option, self._option_string_actions, fix, alike=_NEAR)
            raise UsageError(f"{self.prog.partition(' ')[2]} has no argument {option!a}: {fix}")
        return found, unknown


def parser(
    loaded: Container[str] = frozenset(COMMANDS), *, listed: bool = True
) -> argparse.ArgumentParser:
    """Return the parser; of a command that is not ``loaded``, it knows the line of help alone,
    and where they are not to be ``listed``, the name.
    """
    common = _Command(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        # Given before the command or after it: the one must not blot out the other.
        default=argparse.SUPPRESS,
        help="the configuration (default: BATCHD_CONFIG, ./config.toml if it is trusted, ~/.config/batchd/, /etc/batchd/)",
    )
    whole = argparse.ArgumentParser(
        prog="batchd",
        description="A print spooler for LLM agents: drop task.json, collect verified results.",
        epilog="Exit codes: 0 all completed, 1 some task did not, 2 wrong use or invalid input, "
        f"3 not possible here.\n\n{_examples((*_EXAMPLES['run'], 'batchd demo'))}",
        formatter_class=_Help,
        parents=[common],
    )
    whole.add_argument("--version", action="version", version=f"batchd {__version__}")
    whole.add_argument(
        "-C",
        type=_enter,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="work as if begun in DIR; each more one is relative to the one before",
    )
    commands = whole.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Command
    )
    for name in COMMANDS:
        line, examples = about(name) if listed or name in loaded else (name, ())
        command = commands.add_parser(
            name, help=line, description=f"{line[0].upper()}{line[1:]}.", parents=[common]
        )
        if name in loaded:
            _module(name).arguments(command)
            command.epilog = "\n\n".join(filter(None, (command.epilog, _examples(examples))))
            command.formatter_class = _Help
    return whole


class _Help(argparse.HelpFormatter):
    """The help formatter: argparse's layout, but a paragraph of examples keeps its lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        fill = super()._fill_text
        kept = (part if "\n" in part else fill(part, width, indent) for part in parts)
        return "\n\n".join(kept)


def _examples(lines: Sequence[str]) -> str:
    """Return a paragraph of examples."""
    head = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join((head, *(f"  {line}" for line in lines)))


def _enter(directory: str) -> None:
    """Go on as if begun there, as `make -C` and `git -C` do."""
    sys.argv[0] = os.path.abspath(sys.argv[0])  # no link is followed
    try:
        os.chdir(directory)
    except OSError as error:
        raise UsageError(f"-C {escape(directory)}: {error.strerror}") from None


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and argv[0] in {"help", "version"}:
        argv = [*argv[1:], "--help"] if argv[0] == "help" else ["--version"]
    # Only what may be called is loaded.
    known = parser(argv, listed=not argv or argv[0] not in COMMANDS)
    if not argv:
        print(_WAY_IN, end="", file=sys.stderr)
        raise SystemExit(2)
    first = argv[0]
    if not first.startswith("-") and first not in COMMANDS:
        if instead := GONE_COMMANDS.get(first):
            raise UsageError(f"{first} is gone: {instead}")
        if first in _ELSEWHERE:
            raise UsageError(f"there is no command {first}: use `batchd {_ELSEWHERE[first]}`")
        fix = near(first, COMMANDS, "`batchd --help` lists them", alike=_NEAR)
        raise UsageError(f"there is no command {first!a}: {fix}")
    args = known.parse_args(argv)
    args.config = getattr(args, "config", None)
    return args
