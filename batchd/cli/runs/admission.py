"""What keeps a ``run`` from having its files worked on:
the spool of another user, a daemon that works otherwise, a pause.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from batchd import config, control
from batchd.cli.display import formatting
from batchd.errors import NotPossibleError, OlderStoreError, UsageError
from batchd.records import Cause, Scope
from batchd.store.reader import StoreReader


def insist_alike(
    settings: config.Config, standing: control.DaemonStatus, processes: int | None
) -> None:
    """Refuse to have a daemon work that would do it otherwise than one of our own.

    Raises ``UsageError``.
    """
    theirs = f"process {standing.pid} works here"
    slots = processes and processes * settings.pool.agents_per_process
    if processes is not None and (standing.watching or slots != standing.slots):
        raise UsageError(
            f"--processes is for a daemon of its own, and {theirs}: leave it out, or change "
            "that daemon with `batchd tune pool.processes=N`"
        )
    if standing.outbox not in {"", settings.paths.outbox}:
        raise UsageError(
            f"{theirs}, and its results lie in {standing.outbox}, not in {settings.paths.outbox}: "
            "name its configuration, leave --here out, or wait until it ends"
        )
    if standing.conditions not in {"", settings.conditions()}:
        raise UsageError(
            f"{theirs} for another `batchd run`, whose keys, models, limits or sandbox are not "
            "yours: wait until it ends, or use --private"
        )


def insist_own(state: Path) -> None:
    """Refuse to write into what another user may have put links into, root included.

    Raises ``NotPossibleError``.
    """
    try:
        owner = state.stat().st_uid
    except FileNotFoundError:
        return
    except PermissionError:  # a folder above it is closed, or it is
        owner = -1
    if owner != os.geteuid():
        user = "another user" if owner < 0 else f"user {owner}"
        raise NotPossibleError(
            f"the spool of {state} belongs to {user}: run this as that user, or drop the file "
            "there with `batchd submit --wait FILE`"
        )


def refuse_paused(settings: config.Config, models: Collection[str]) -> None:
    """Refuse to wait for what people have paused. Raises ``NotPossibleError``."""
    store = formatting.store_path(Path(settings.paths.state))
    if not store.exists():
        return
    names = {*models, *(model.partition("/")[0] for model in models)}
    try:
        with StoreReader(store) as reader:
            paused = [p for p in reader.parked() if p.cause is Cause.PAUSED]
    except OlderStoreError:
        return  # the daemon that comes migrates it
    for parking in paused:
        if parking.scope is Scope.ALL or (parking.scope.asked and parking.name in names):
            what = parking.name or "everything"
            option = f" --{parking.scope} {parking.name}" if parking.name else ""
            raise NotPossibleError(f"{what} is paused ({parking.message}): batchd resume{option}")
