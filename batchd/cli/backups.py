"""``batchd backup``: a copy of the store, beside a running daemon too; and ``batchd restore``:
it takes the store's place, and the outbox says what has ended since.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from batchd import config
from batchd.cli.display import formatting
from batchd.errors import NotPossibleError, SpoolLockedError, UsageError
from batchd.log import escape
from batchd.words import money

if TYPE_CHECKING:
    from batchd.daemon.reconcile import ReconcilePlan

#: Lines of each kind that people are shown; `--json` has all.
_SHOWN = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the one that the parser is for."""
    if parser.prog.endswith(" backup"):
        parser.add_argument(
            "target",
            nargs="?",
            type=Path,
            metavar="FILE",
            help="the file to write (default: a name with the time, beside the store)",
        )
        return
    parser.add_argument(
        "backup",
        nargs="?",
        type=Path,
        metavar="BACKUP",
        help="the file to put in place (default: the store that is there, put there by hand)",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="begin a new store, if the old one and all backups are lost",
    )
    parser.add_argument("--yes", action="store_true", help="do it (default: only show it)")
    parser.add_argument(
        "--moved",
        action="store_true",
        help="the backup belongs to this spool, though some of its batches went to another outbox",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    parser.epilog = (
        "Stop the daemon first. batchd imports results from the outbox, with their money. "
        "Every other task without an end in that store may have run since: it waits for "
        "`batchd resume` or `batchd cancel`. The present store is kept beside the new "
        "one."
    )


def run(args: argparse.Namespace) -> int:
    """Copy the store; or show what a restore would do, or do it."""
    return _back_up(args) if args.command == "backup" else _restore(args)


def _back_up(args: argparse.Namespace) -> int:
    from batchd.store import backups

    path = formatting.store_path(formatting.state_directory(args.config))
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = args.target or path.with_name(f"{path.name}.{stamp}.bak")
    if target.is_dir():
        raise UsageError(f"{escape(str(target))} is a directory: name a file in it")
    if args.target and not target.parent.is_dir():
        folder = escape(str(target.parent))
        raise UsageError(f"{folder} is not a directory: make it, or name another file")
    size = backups.back_up(path, target)
    print(escape(f"{target}: {size:,} bytes"))
    return 0


def _restore(args: argparse.Namespace) -> int:
    import asyncio  # a copy needs nothing of all this, and `--help` need not load the daemon

    from batchd.daemon import lock, reconcile
    from batchd.spool import home, safety
    from batchd.store import backups

    settings = formatting.settings(args.config)
    state = Path(settings.paths.state)
    path = formatting.store_path(state)
    if args.backup and args.new:
        raise UsageError("give only one of BACKUP and --new")
    source = args.backup or path
    safety.refuse_seen(settings)
    try:
        held = lock.acquire(state)
    except SpoolLockedError as error:
        raise SpoolLockedError(f"{error}: stop it first") from None
    try:
        if problem := home.away_from_home(state, moved=True):
            raise NotPossibleError(problem)
        draft = backups.fresh(path) if args.new else backups.draft(source, path)
        try:
            plan = asyncio.run(_work(draft, settings, do=args.yes, moved=args.moved))
            former = None
            if args.yes:
                # Before the exchange:
                # a daemon that starts after a crash must not take them for new.
                reconcile.set_aside(plan, state)
                former = backups.put_in_place(draft, path)
                home.settle_home(state)
        finally:
            backups.discard(draft)
    finally:
        lock.release(held)
    if args.json:
        imported = [
            {"task": str(end.ref), "status": end.result.status, "cost_usd": end.result.cost.total}
            for end in plan.found
        ]
        fields = {
            "done": args.yes,
            "source": str(source),
            "former": str(former) if former else None,
            "imported": imported,
            "parked": [str(ref) for ref in plan.uncertain],
            "published": plan.published,
            "unknown": [str(request) for request in plan.unknown],
            "others": plan.others,
            "claimed": [{"name": claim.name, "path": str(claim.path)} for claim in plan.claims],
        }
        formatting.print_json(fields)
        return 0
    what = "A new one, which holds nothing," if args.new else str(source)
    lines = [f"{what} {'is' if args.yes else 'would become'} the store.", *_listed(plan)]
    if plan.others and not (args.yes or args.moved):
        lines[:0] = [_strange(plan, settings), ""]
    if former:
        lines.append(f"The former store is {former}.")
    if not args.yes:
        yes = "--moved --yes" if plan.others else "--yes"
        lines.append(f"Nothing was changed. `{yes}` does it.")
    print(*map(escape, lines), sep="\n")
    return 0


async def _work(draft: Path, settings: config.Config, *, do: bool, moved: bool) -> ReconcilePlan:
    """Return the plan, carried out on the draft if it is to be.

    Raises ``UsageError`` for another spool's.
    """
    from batchd.daemon import reconcile
    from batchd.store.store import Store

    store = Store(draft)
    try:
        plan = await reconcile.plan(store, settings)
        if do:
            if plan.others and not moved:
                raise UsageError(f"{_strange(plan, settings)} Nothing was changed.")
            await reconcile.carry_out(store, plan)
    finally:
        store.close()
    return plan


def _strange(plan: ReconcilePlan, settings: config.Config) -> str:
    """Return where else a backup would write, and what to say if that is right."""
    return (
        f"Some of its batches, or all, went to other folders than {settings.paths.outbox}: "
        f"{', '.join(plan.others[:_SHOWN])}. batchd writes what is left of them there, and prune "
        "removes it there. If these were outboxes of this spool, add --moved; else this is the "
        "store of another one."
    )


def _listed(plan: ReconcilePlan) -> list[str]:
    """Return what is done with each task, batch and file."""
    parts = {
        "Results in the outbox that it did not know are imported": [
            f"{end.ref}: {end.result.status}, {money(end.result.cost.total)}" for end in plan.found
        ],
        "Batches whose summary is in the outbox count as published": plan.published,
        "Tasks that may have run since wait for you; a batch's name resumes all of its tasks": [
            f"{ref}: `batchd resume {ref}` or `batchd cancel {ref}`" for ref in plan.uncertain
        ],
        "Batches that it does not know have no end; drop a file of these to run it again": [
            str(request) for request in plan.unknown
        ],
        "Claimed files that may have become batches since are set aside": [
            f"{claim.name}: move it from uncertain/ in the state directory to the inbox to run it"
            for claim in plan.claims
        ],
    }
    lines = []
    for title, each in parts.items():
        if each:
            lines += ["", f"{title} ({len(each):,}):", *(f"  {line}" for line in each[:_SHOWN])]
            more = len(each) - _SHOWN
            lines += [f"  … and {more:,} more; --json has all", ""] if more > 0 else [""]
    return lines
