"""The home of a state directory:
a copy of it would take up the same claims and tasks a second time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.errors import NotPossibleError
from batchd.spool import files

#: The file in the state directory that says where its home is.
_HOME_FILE = "home"


@dataclass(frozen=True, slots=True)
class StateHome:
    """The home of a state directory, as far as a directory can be known again.

    It knows its path and its inode. What was renamed is the same one; what has another inode is a
    copy, was moved to another file system, or came back from a backup, and only its owner knows.
    """

    path: str
    inode: int
    device: int

    def same(self, other: StateHome) -> bool:
        """Whether both are one directory:
        the number of a device may change whenever the machine starts.
        """
        where = self.path == other.path or self.device == other.device
        return where and self.inode == other.inode


_HOME: msgspec.json.Decoder[StateHome] = decoders.decoder(StateHome)


def settle_home(state: Path) -> None:
    """Make a state directory at home where it lies now. Raises ``OSError``."""
    text = msgspec.json.encode(_of(state)) + b"\n"
    files.write_whole(state / _HOME_FILE, text, replace=True, mode=0o600)


def enter_home(state: Path) -> None:
    """See to it that a state directory is at home; one that does not know its home yet has it here.

    Raises ``NotPossibleError`` for one that lives elsewhere, ``OSError``.
    """
    if problem := away_from_home(state):
        raise NotPossibleError(problem)
    if _noted(state) != _of(state):
        settle_home(state)


def away_from_home(state: Path, *, moved: bool = False) -> str:
    """Return why no daemon may work with a state directory that lives elsewhere, and what to do;
    empty: it is at home. ``moved``: it may have been moved, and be no copy of what is there still.
    """
    noted = _noted(state)
    if noted is None or noted.same(_of(state)):
        return ""
    with contextlib.suppress(OSError):
        if _of(Path(noted.path)).inode == noted.inode:
            return (
                f"{state} is a copy of {noted.path}, which is still there: with both, files would be worked on and "
                "paid for twice. Give this daemon a directory of its own with [paths] state, or take the other one away"
            )
    if moved:
        return ""
    return (
        f"{state} is a copy, or was moved: its home was {noted.path}. If it was moved, and the former is not used any "
        f"more, remove {state / _HOME_FILE}, and it goes on where it was; if it comes from a backup, "
        "`batchd restore --yes` compares it with the outbox first"
    )


def _of(state: Path) -> StateHome:
    found = state.stat()
    return StateHome(str(state.resolve()), found.st_ino, found.st_dev)


def _noted(state: Path) -> StateHome | None:
    """Return where it lives; None: it does not know, being new, or of an older version.

    Raises ``NotPossibleError`` where something else stands in the place of that.
    """
    path = state / _HOME_FILE
    try:
        text = path.read_bytes().strip(b"\0")  # after a power cut it may have its length alone
        return _HOME.decode(text) if text else None
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise NotPossibleError(
            f"{path} notes where this directory lives, to distinguish it from a copy, and cannot be read ({error}): "
            f"if {state} is not a copy, remove {path}"
        ) from None
