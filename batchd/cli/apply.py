"""``batchd apply``: puts what tasks have changed into the repositories that they had clones of."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from batchd import sandbox, words
from batchd.cli import diff
from batchd.cli.display import formatting
from batchd.errors import FolderError, NotPossibleError, SandboxError, UsageError, WorkspaceError
from batchd.log import escape
from batchd.observe import changes
from batchd.records import Ref, SandboxPolicy
from batchd.sandbox.command_user import as_root
from batchd.sandbox.trigger_search import run_by_git
from batchd.store.queries import StoreReader
from batchd.workspace import applying

#: Who commits where git knows no name of the user's.
_NAME, _EMAIL = "batchd", "batchd@localhost"
_MESSAGE = 72
_ROOM = 1 << 50


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "A patch is applied whole, or not at all. Without --branch, all patches go into the "
        "working tree and the index together, which must have no changes of their own. With "
        "--branch, each patch becomes a commit. Hooks and filters do not run."
    )
    parser.add_argument(
        "target", nargs="+", metavar="BATCH[/TASK]", help="in the order to apply them"
    )
    parser.add_argument(
        "--branch", metavar="NAME", help="commit on this branch; the working tree stays as it is"
    )
    parser.add_argument(
        "--into", metavar="DIR", type=Path, help="the repository (default: the one that was cloned)"
    )
    parser.add_argument(
        "--new", action="store_true", help="refuse a --branch that is there already"
    )
    parser.add_argument(
        "--sha256", metavar="HASH", default="", help="refuse any patch but the one with this hash"
    )
    parser.add_argument(
        "--own", action="store_true", help="refuse a repository that is another user's"
    )
    parser.add_argument(
        "--with-hooks", action="store_true", help="apply it even if it changes what git itself runs"
    )


def run(args: argparse.Namespace) -> int:
    """Apply patches: together, or as commits in order up to the first that does not go in."""
    if args.new and args.branch is None:
        raise UsageError("--new is for a branch: give --branch NAME, too")
    settings = formatting.settings(args.config)
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:
        wanted = []
        for target in dict.fromkeys(args.target):
            batch, task = words.split_target(target)
            found = [p for p in diff.patches(reader, batch, task) if task or p.result.patch]
            if not found:
                lacks = "no result in the outbox" if task else "no task that left a patch"
                raise NotPossibleError(f"{escape(target)} has {lacks}")
            wanted += found
    if args.sha256 and len(wanted) > 1:
        raise UsageError("--sha256 is the hash of one patch: name one task")
    orders = [_order(made, args) for made in wanted]
    if args.branch is None:
        orders = _together(orders)
    begun: set[Path] = set()
    for order in orders:
        if order.branch and order.into in begun:  # the first has made it
            order = replace(order, branch=replace(order.branch, new=False))
        begun.add(order.into)
        names = ", ".join(map(str, order.refs))
        try:
            policy = replace(settings.sandbox_policy(), sets_ids=True)
            ruled = b"" if args.with_hooks else applying.obeyed(order.into)
            done = asyncio.run(_applied(policy, order, ruled))
        except (WorkspaceError, SandboxError, FolderError) as error:
            raise NotPossibleError(f"{names}: not applied to {order.into}: {error}") from None
        if order.branch is None:
            said = (
                f"applied to {order.into}; `git diff --cached` there shows it, nothing is committed"
            )
        else:
            said = f"{done[:19]} on {order.branch.name} in {order.into}"
        formatting.say(escape(f"{names}: {said}"))
    return 0


@dataclass(frozen=True, slots=True)
class _Order:
    """Patches that go in together, and where."""

    refs: tuple[Ref, ...]
    into: Path
    patches: tuple[bytes, ...]
    branch: applying.Branch | None


def _together(orders: list[_Order]) -> list[_Order]:
    """Return orders with those as one that go into one working tree:
    the first must not stand in the way of the next.
    """
    found: dict[Path, _Order] = {}
    for order in orders:
        if known := found.get(order.into):
            patches = known.patches + order.patches
            order = replace(known, refs=known.refs + order.refs, patches=patches)
        found[order.into] = order
    return list(found.values())


def _order(made: diff.TaskPatch, args: argparse.Namespace) -> _Order:
    """Return what is to be done. Raises ``NotPossibleError`` where that is refused."""
    ref, result = made.ref, made.result
    remarks = changes.remarks(result)
    if result.workspace is None:
        raise NotPossibleError(f"{ref} cannot be applied: it worked on no clone or copy")
    if not changes.whole(result):
        why = "; ".join(remarks) or "it has changed nothing"
        raise NotPossibleError(f"{ref} cannot be applied: {why}")
    for remark in remarks:
        formatting.complain(f"batchd: {ref}: {remark}")
    patch = made.patch()
    if args.sha256 not in {"", hashlib.sha256(patch).hexdigest()}:
        raise NotPossibleError(
            f"{ref} is not applied: its patch is another one than that of --sha256; look with "
            f"`batchd diff {ref}`"
        )
    if not args.with_hooks and (names := run_by_git(patch)):
        raise NotPossibleError(
            f"{ref} is not applied: it changes what git runs by itself ({', '.join(names[:8])}); "
            f"look with `batchd diff {ref}`, then give --with-hooks"
        )
    return _Order(
        (ref,),
        _into(made, args.into, own=args.own),
        (patch,),
        _branch(made, args.branch, new=args.new),
    )


def _into(made: diff.TaskPatch, given: Path | None, *, own: bool) -> Path:
    workspace = made.result.workspace
    source = workspace.source if workspace else ""
    if given is None and not source.startswith("/"):
        raise NotPossibleError(f"{made.ref} worked on {source}: name a clone of it with --into DIR")
    into = Path(os.path.realpath(given or source))
    if not (into / ".git").is_dir() and not (into / "objects").is_dir():
        raise NotPossibleError(
            f"{into} is no repository: name the main working tree with --into, or put the patch "
            f"there by hand: {changes.by_hand(into, made.file)}"
        )
    if as_root() and not into.stat().st_uid:
        raise NotPossibleError(
            f"{into} belongs to root, and batchd's git never runs as root: put the patch there by "
            f"hand: {changes.by_hand(into, made.file)}"
        )
    inner = (each for each in (into / ".git", into / "objects") if each.exists())
    if own and {each.stat().st_uid for each in (into, *inner)} != {os.geteuid()}:
        raise NotPossibleError(f"{into} belongs to another user")
    return into


def _branch(made: diff.TaskPatch, name: str | None, *, new: bool) -> applying.Branch | None:
    if name is None:
        return None
    if made.result.workspace and made.result.workspace.kind == "copy":
        raise NotPossibleError(
            f"{made.ref} worked on a copy, which begins at no commit: apply it without --branch"
        )
    first = next(iter(made.result.first_prompt.strip().splitlines()), "")
    title = first if len(first) <= _MESSAGE else f"{first[: _MESSAGE - 1]}…"
    return applying.Branch(
        name=name,
        base=made.result.workspace.base if made.result.workspace else "",
        author=_own("user.name") or _NAME,
        email=_own("user.email") or _EMAIL,
        message=f"{title or made.ref}\n\nMade by {made.result.model} as batchd's task {made.ref}.",
        new=new,
    )


def _own(key: str) -> str:
    """Return what git knows of this user, by their own configuration alone."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "config", "--global", "--get", key]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return said.stdout.strip()


async def _applied(policy: SandboxPolicy, order: _Order, ruled: bytes) -> str:
    # The owner's repository is not held to what a task may write.
    roomy = replace(policy, max_file_bytes=_ROOM, max_disk_bytes=_ROOM, network=False)
    async with await sandbox.Sandbox(roomy).open(
        str(order.into), fresh=False, network=False, env={}
    ) as place:
        return await applying.apply(place, order.patches, order.branch, ruled)
