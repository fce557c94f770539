"""Why a daemon would not start on a state directory, said before one tries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from batchd.cli.display import formatting
from batchd.errors import StoreError
from batchd.spool import home
from batchd.store import witness
from batchd.store.database_file import reading


def found(state: Path) -> Iterator[str]:
    """Yield why, each with what to do. No daemon may be running there."""
    if not state.is_dir():
        return
    if problem := home.away(state):
        yield problem
    path = formatting.store_path(state)
    try:
        witness.check_there(path)
        if path.exists() and path.stat().st_size:
            witness.check(path, reading(path))
    except StoreError as error:
        yield str(error)
    except (sqlite3.Error, OSError):
        return  # the command that opens it says what is wrong with it
