"""``batchd notify``: who is notified of what, what waits for them,
and a test that shows whether it arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

from batchd import config
from batchd.cli.display import formatting, tables
from batchd.cli.display.formatting import coloured
from batchd.cli.display.tables import Column
from batchd.errors import DeliveryError, UsageError
from batchd.log import escape
from batchd.notify import channels
from batchd.notify.channels import ReceiverTarget
from batchd.store import lookups
from batchd.store.queries import StoreReader

#: What who has none can paste.
_NONE = """\
no receiver is configured; to have one, put such lines into config.toml (all keys: batchd config --sample):
  [notify.me]
  kind = "webhook"
  url_env = "MY_WEBHOOK"           # the variable that holds its address
  on = ["batch_completed", "batch_failed", "budget_reached", "provider_parked"]
Mail, Slack, Telegram and a hundred others go by kind = "apprise"."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--test",
        nargs="?",
        const="",
        metavar="NAME",
        help="send a test to this receiver, or to all, and show what comes back",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Show the receivers, or try them out; 3 where one cannot be reached."""
    settings = config.load(args.config)
    known = {target.name: target for target in channels.targets(settings)}
    if args.test is None:
        _show(settings, list(known.values()), as_json=args.json)
        return 0
    if args.test and args.test not in known:
        names = ", ".join(known) or "none"
        raise UsageError(f"there is no [notify.{escape(args.test)}]; the known ones are: {names}")
    wanted = [known[args.test]] if args.test else list(known.values())
    if not wanted:
        raise UsageError(_NONE)
    outcomes = asyncio.run(_try(wanted))
    if args.json:
        formatting.print_json([{"receiver": n, "ok": ok, "answer": a} for n, ok, a in outcomes])
    else:
        for name, ok, answer in outcomes:
            verdict = "ok" if ok else "failed"
            print(f"{coloured(f'{verdict:<6}', verdict)} {name}: {answer}")
    return 0 if all(ok for _, ok, _ in outcomes) else 3


async def _try(targets: list[ReceiverTarget]) -> list[tuple[str, bool, str]]:
    """Send each a test, all at once; return their names, whether it worked, and what came back."""
    from batchd.notify import messages  # only where something is sent
    from batchd.spool.ulid import ulid

    async def one(target: ReceiverTarget) -> tuple[str, bool, str]:
        event = messages.clean(messages.test(target.name), target.masker)
        try:
            return target.name, True, await channels.send(target, messages.compose([event], ulid()))
        except DeliveryError as error:
            return target.name, False, str(error)

    return await asyncio.gather(*map(one, targets))


def _show(settings: config.Config, targets: list[ReceiverTarget], *, as_json: bool) -> None:
    waiting = Counter[str]()
    store = formatting.store_path(Path(settings.paths.state))
    if store.exists():
        with StoreReader(store) as reader:
            waiting.update(reader.read(lookups.notice_counts))
    programs: tuple[Column[ReceiverTarget], ...] = (
        Column("receiver", lambda t: t.name),
        Column("kind", lambda t: t.settings.kind),
        Column("on", lambda t: list(t.settings.on)),
        Column("waiting", lambda t: waiting[t.name]),
    )
    people: tuple[Column[ReceiverTarget], ...] = (
        Column("RECEIVER", lambda t: t.name),
        Column("KIND", lambda t: t.settings.kind),
        Column("WAITING", lambda t: f"{waiting[t.name]:,}", right=True),
        Column("ON", lambda t: " ".join(t.settings.on), wide="name"),
    )
    if as_json:
        tables.table(targets, programs, "json")
    elif targets:
        tables.table(targets, people)
    else:
        print(f"batchd: {_NONE}", file=sys.stderr)
