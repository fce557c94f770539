"""The errors that batchd raises for a cause outside itself: one tree.

The docstring of a class is its default message. ``exit_code`` is what a command
that ends with the error returns: 2 for wrong use or invalid input, 3 for what is not possible here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

#: Characters of each part of a problem:
#: what a user wrote may be of any length, and is quoted in it.
_MAX_PART_CHARS = 1000
#: What is longer is no misspelt word, and takes long to compare.
_MAX_WORD_CHARS = 64


def cut(text: str, most: int = _MAX_PART_CHARS) -> str:
    """Return ``text``; where it is longer than ``most``,
    its head and its tail, and how much is left out.
    """
    half = most // 2
    left_out = len(text) - 2 * half
    return (
        text if len(text) <= most else f"{text[:half]}[… {left_out:,} characters …]{text[-half:]}"
    )


def near(
    word: str, known: Iterable[str], rest: str = "", *, before: str = "", alike: float = 0.6
) -> str:
    """Return ``do you mean NAME?`` of the known name that is most like a word, and the rest of what
    helps; the rest alone, where none is alike.
    """
    from difflib import get_close_matches  # only where something is wrong

    found = get_close_matches(word[:_MAX_WORD_CHARS], [*known], n=1, cutoff=alike)
    return f"do you mean {before}{found[0]}? {rest}".strip() if found else rest


class BatchdError(Exception):
    """batchd could not go on."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with what a user wrote: where, what, and how to fix it."""

    #: ``tasks[3].limits.timeout_s``, ``line 4, column 7``, ``[pool] processes``.
    place: str
    message: str
    #: The fix, where one is known.
    hint: str = ""

    def cut(self) -> Problem:
        """Return it with no part longer than a person reads."""
        return Problem(cut(self.place), cut(self.message), cut(self.hint))

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text} ({self.hint})" if self.hint else text


class InputError(BatchdError):
    """The input is not valid."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        self.problems = tuple(problem.cut() for problem in problems)
        #: The file that the problems are in.
        self.source = source
        super().__init__("\n".join(f"{source}: {p}" if source else str(p) for p in self.problems))


class ConfigError(InputError):
    """The configuration is not valid."""


class TaskFileError(InputError):
    """The task file is not valid."""


class UsageError(BatchdError):
    """The command was used wrongly."""

    exit_code = 2


class NotPossibleError(BatchdError):
    """The error that something is not possible here."""

    exit_code = 3


class ForbiddenError(NotPossibleError):
    """The error that something is for another user of this machine."""

    def __init__(self, message: str = "", *, user: str = "") -> None:
        super().__init__(message)
        #: Who may do it; empty: that does not show.
        self.user = user


class WithdrawnError(BatchdError):
    """The order is not carried out: who gave it has gone before it was durable."""


class SandboxUnavailableError(NotPossibleError):
    """Commands cannot be sandboxed on this machine."""


class SpoolLockedError(NotPossibleError):
    """Another daemon has this spool."""


class NoDaemonError(NotPossibleError):
    """No daemon runs on this spool."""


class DaemonEndedError(NoDaemonError):
    """The daemon has ended before it answered: what was asked may be done."""


class NoAnswerError(NoDaemonError):
    """The daemon does not answer."""


class DeliveryError(BatchdError):
    """The notification could not be delivered."""

    exit_code = 3

    def __init__(self, message: str = "", *, final: bool = False) -> None:
        super().__init__(message)
        #: Whether to try again would change nothing; somebody must fix it.
        self.final = final


class SandboxError(BatchdError):
    """A command could not be started in the sandbox."""


class WorkspaceError(BatchdError):
    """The repository, or the copy of a directory, that a task works on cannot be had."""


class FolderError(BatchdError):
    """The machine's disk takes nothing, such as a task's directory, or its patch:
    the task is not at fault, and waits for it.
    """


class StoreError(BatchdError):
    """The store cannot be read or written."""

    exit_code = 3


class NewerStoreError(StoreError):
    """The store was written by a newer batchd; install that version again."""


class DamagedStoreError(StoreError):
    """The store is damaged."""


class OlderStoreError(StoreError):
    """The store is of an older version."""


class UnknownNameError(StoreError):
    """The store knows no batch or task of that name."""

    exit_code = 2


class UsedNameError(StoreError):
    """A batch of that name is stored already."""


class StaleAttemptError(StoreError):
    """The task has been given to another worker since."""
