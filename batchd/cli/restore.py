"""``batchd restore``: a backup takes the store's place,
and the results in the outbox are imported.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchd import config
from batchd.cli.display import formatting
from batchd.errors import NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool import home
from batchd.words import counted, money

if TYPE_CHECKING:
    from batchd.daemon.reconcile import ReconcilePlan

#: Lines of each kind that people are shown; `--json` has all.
_SHOWN = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
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
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="for a state directory that was moved: keep the store as it is, and compare nothing",
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
        "Every other task without an end in that store may have run since: batchd parks it "
        "until `batchd resume` or `batchd cancel`. The present store is kept beside the new "
        "one."
    )


def run(args: argparse.Namespace) -> int:
    """Show what a restore would do, or do it."""
    from batchd import visible
    from batchd.daemon import lock, reconcile  # `--help` need not load the daemon
    from batchd.store import restoring

    settings = formatting.settings(args.config)
    state = Path(settings.paths.state)
    path = formatting.store_path(state)
    if bool(args.backup) + args.new + args.as_is > 1:
        raise UsageError("give only one of BACKUP, --new and --as-is")
    source = args.backup or path
    visible.refuse(settings)
    held = lock.acquire(state)
    try:
        if home.lived_in(state):
            raise NotPossibleError(home.away(state))
        if args.as_is:
            return _as_is(state, do=args.yes, as_json=args.json)
        draft = restoring.fresh(path) if args.new else restoring.draft(source, path)
        try:
            plan = asyncio.run(_work(draft, settings, do=args.yes, moved=args.moved))
            former = None
            if args.yes:
                # Before the exchange:
                # a daemon that starts after a crash must not take them for new.
                reconcile.set_aside(plan, state)
                former = restoring.put_in_place(draft, path)
                home.settle(state)
        finally:
            restoring.discard(draft)
    finally:
        lock.release(held)
    if args.json:
        formatting.print_json(_fields(plan, source, former, done=args.yes))
    else:
        if plan.others and not args.yes:
            print(f"{escape(_strange(plan, settings))}\n")
        _show(plan, source, former, done=args.yes)
    return 0


def _as_is(state: Path, *, do: bool, as_json: bool) -> int:
    """Make a state directory at home where it lies."""
    if do:
        home.settle(state)
    if as_json:
        formatting.print_json({"done": do, "home": str(state.resolve())})
    else:
        print(escape(f"{state} {'is' if do else 'would become'} the home of this state directory."))
        if not do:
            print("Nothing was changed. `--yes` does it.")
    return 0


def _strange(plan: ReconcilePlan, settings: config.Config) -> str:
    """Return why a backup seems to be another spool's,
    or where else it would write, and what to say if that is right.
    """
    if not plan.elsewhere:
        listed = ", ".join(plan.others[:_SHOWN])
        return (
            f"Some of its batches went to other folders than {settings.paths.outbox}: "
            f"{listed}. batchd writes what is left of them there, and prune removes it there. "
            "If these were outboxes of this spool, add --moved."
        )
    return (
        f"This seems to be the store of another spool: its batches went to {plan.elsewhere}, "
        f"and none to {settings.paths.outbox}. If this spool or its outbox was moved since, "
        "add --moved; batches that have not ended go on where they began."
    )


async def _work(draft: Path, settings: config.Config, *, do: bool, moved: bool) -> ReconcilePlan:
    """Return the plan, carried out on the draft if it is to be.

    Raises ``UsageError`` for another spool's.
    """
    from batchd.daemon import reconcile
    from batchd.store import Store

    store = Store.open(draft)
    try:
        plan = await reconcile.plan(store, settings)
        if do:
            if plan.others and not moved:
                raise UsageError(f"{_strange(plan, settings)} Nothing was changed.")
            await reconcile.carry_out(store, plan)
    finally:
        store.close()
    return plan


def _fields(
    plan: ReconcilePlan, source: Path, former: Path | None, *, done: bool
) -> dict[str, Any]:
    """Return the plan as JSON has it."""
    return {
        "done": done,
        "source": str(source),
        "former": str(former) if former else None,
        "imported": [
            {"task": str(f.ref), "status": f.event.status, "booked_usd": round(f.usd, 8)}
            for f in plan.found
        ],
        "parked": [str(ref) for ref in plan.uncertain],
        "published": list(plan.published),
        "unknown": [
            {
                "batch": s.name,
                "finished": s.finished,
                "results": s.results,
                "unbooked_usd": round(s.usd, 8),
                "request": s.request,
            }
            for s in plan.strangers
        ],
        "elsewhere": plan.elsewhere or None,
        "others": list(plan.others),
        "claimed": [{"name": c.name, "path": str(c.path)} for c in plan.claims],
    }


def _show(plan: ReconcilePlan, source: Path, former: Path | None, *, done: bool) -> None:
    print(escape(f"{source} {'is' if done else 'would become'} the store."))
    found = [f"{f.ref}: {f.event.status}, {money(f.usd)} more in the books" for f in plan.found]
    _list("Results in the outbox that it did not know are imported", found)
    _list("Batches whose summary is in the outbox count as published", list(plan.published))
    parked = [f"{ref}: `batchd resume {ref}` or `batchd cancel {ref}`" for ref in plan.uncertain]
    _list(
        "Tasks that may have run since are parked; a batch's name resumes all of its tasks", parked
    )
    strangers = [
        f"{s.name}: {counted(s.results, 'result')}, {money(s.usd)} not in the books; "
        + (
            "finished, collect it"
            if s.finished
            else f"not finished: what has no result runs again if you drop {s.request}"
        )
        for s in plan.strangers
    ]
    _list("Batches in the outbox that it does not know stay as they are", strangers)
    claims = [
        f"{c.name}: move it from uncertain/ in the state directory to the inbox to run it"
        for c in plan.claims
    ]
    _list("Claimed files that may have become batches since are set aside", claims)
    if former:
        print(escape(f"The former store is {former}."))
    if not done:
        print("Nothing was changed. `--yes` does it.")


def _list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    formatting.say("", f"{title} ({len(lines):,}):")
    for line in lines[:_SHOWN]:
        print(f"  {escape(line)}")
    if len(lines) > _SHOWN:
        print(f"  … and {len(lines) - _SHOWN:,} more; --json has all")
    print()
