"""``batchd init --systemd``: shows what makes batchd a service,
does it after a yes, and undoes exactly that.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from batchd.cli.display import formatting
from batchd.cli.systemd import plans
from batchd.cli.systemd.install_steps import FileStep, FolderStep, InstallationRecord
from batchd.cli.systemd.plans import InstallationPlan
from batchd.errors import NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool.new_spool import NewSpool

#: What is left where systemd runs.
_RUNNING = Path("/run/systemd/system")


def run(args: argparse.Namespace, directory: Path, wanted: Callable[[Path], NewSpool]) -> int:
    """Install, or remove; 3 where systemd did not do what it was ordered."""
    if not args.user and args.directory is not None:
        raise UsageError(
            "the system's service has its spool in /var/lib/batchd: leave DIR out, or give --user"
        )
    if args.remove:
        return _remove(args)
    plan = (
        plans.of_ones_own(directory, os.environ)
        if args.user
        else plans.of_the_system(wanted, os.environ)
    )
    _show("This is what makes batchd a service:", _lines(plan))
    if not _agreed(args):
        return 0
    _insist_on_root(args)
    _do(plan)
    orders = plan.orders
    ordered = _order(orders)
    _print_next(plan, [] if ordered else [shlex.join(order) for order in orders])
    return 0 if ordered or not _systemd() else 3


def _lines(plan: InstallationPlan) -> Iterable[str]:
    for step in plan.steps:
        yield from step.shown()
    for order in plan.orders:
        yield f"run {shlex.join(order)}" + (
            "" if _systemd() else "    (no systemd runs here: left to you)"
        )


def _do(plan: InstallationPlan) -> None:
    """Take every step, noting each before the next,
    so that what was done can be undone wherever it stops.
    """
    again = {step.path for step in plan.steps if isinstance(step, FileStep)}
    done = [s for s in plan.notes.read() if not (isinstance(s, FileStep) and s.path in again)]
    for step in plan.steps:
        done.append(step.do())
        plan.notes.write(done)


def _remove(args: argparse.Namespace) -> int:
    notes = plans.notes(os.environ, user=args.user)
    done = notes.read()
    which = "batchd init --systemd --user" if args.user else "batchd init --systemd"
    if not done:
        raise NotPossibleError(f"`{which}` has made nothing here, as far as {notes.file} says")
    systemctl = ("systemctl", "--user") if args.user else ("systemctl",)
    stop = (*systemctl, "disable", "--now", "batchd")
    undone = [step.undone() for step in reversed(done)]
    _show(
        f"This is what `{which}` has made, and what becomes of it:",
        [f"run {shlex.join(stop)}", *undone],
    )
    if not _agreed(args):
        return 0
    _insist_on_root(args)
    ordered = _order([stop])
    kept = _undo(notes)
    reloaded = ordered and _order([(*systemctl, "daemon-reload")])
    for line in kept:
        print(escape(f"It stays: {line}"))
    print("All else is as it was.")
    return 0 if reloaded or not _systemd() else 3


def _undo(notes: InstallationRecord) -> list[str]:
    """Undo what was done, the last first; return what stays, and why."""
    kept = []
    for step in reversed(notes.read()):
        if isinstance(step, FolderStep) and notes.file.is_relative_to(step.path):
            notes.file.unlink(missing_ok=True)  # they lie in it
        if why := step.undo():
            kept.append(why)
    notes.file.unlink(missing_ok=True)
    return kept


def _show(head: str, lines: Iterable[str]) -> None:
    print(head)
    for line in lines:
        print(escape(f"  {line}"))


def _agreed(args: argparse.Namespace) -> bool:
    """Return whether it is to be done: by --yes, or by an answer."""
    if args.yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("Nothing is done yet: --yes does it.")
        return False
    try:
        return input("Do it? [y/N]: ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _insist_on_root(args: argparse.Namespace) -> None:
    if not args.user and os.geteuid() != 0:
        raise NotPossibleError("only root can do that: use sudo, or give --user")


def _systemd() -> bool:
    """Return whether there is a systemd to give orders to."""
    return _RUNNING.is_dir() and shutil.which("systemctl") is not None


def _order(orders: Iterable[tuple[str, ...]]) -> bool:
    """Give orders to systemd, where it runs; return whether it carried them out."""
    if not _systemd():
        return False
    for order in orders:
        done = subprocess.run(order, capture_output=True, text=True, check=False)
        if done.returncode:
            formatting.complain(f"batchd: {shlex.join(order)}: {done.stderr.strip()}")
            return False
    return True


def _print_next(plan: InstallationPlan, orders: list[str]) -> None:
    start = [plan.start] if not plan.ready else []
    print("", "Done. Next:", sep="\n")
    for line in (*plan.first, *orders, *start, *plan.then):
        print(escape(f"  {line}"))
    print("`--remove` in place of `--yes` takes it back.")
