"""What a task needs of the machine that it runs on, and what a worker's machine has of that."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

#: How a label is written; what it means, those know who choose it.
LABEL = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"
#: What Ray calls resources of its own: no labels.
RESERVED = frozenset({"CPU", "GPU", "TPU", "memory", "object_store_memory"})
#: No machine has more GPUs.
MOST_GPUS = 1024
#: Nor does one worker announce more labels.
MOST_LABELS = 64


class Needs(Struct, frozen=True, gc=False, order=True):
    """What a task needs of its machine; without fields: nothing."""

    #: So many GPUs, which are the task's alone while it works.
    gpu: int = 0
    #: A label of its worker; empty: any worker will do.
    label: str = ""

    def __bool__(self) -> bool:
        return bool(self.gpu or self.label)

    def __str__(self) -> str:
        gpus = "1 GPU" if self.gpu == 1 else f"{self.gpu} GPUs"
        label = f"the label {self.label}"
        return " and ".join([gpus] * bool(self.gpu) + [label] * bool(self.label)) or "nothing"


class Has(Struct, frozen=True, gc=False):
    """What a worker's machine has for the tasks of that worker."""

    gpus: int = 0
    labels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gpus or self.labels)

    def covers(self, needs: Needs, *, held: int = 0) -> bool:
        """Whether it has what a task needs; ``held``: so many of its GPUs are others' now."""
        return needs.gpu <= self.gpus - held * bool(needs.gpu) and (
            not needs.label or needs.label in self.labels
        )


NOTHING = Needs()


def wrong(gpus: int, labels: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with what a machine is said to have."""
    if not 0 <= gpus <= MOST_GPUS:
        yield f"{gpus} is not a number of GPUs from 0 to {MOST_GPUS}"
    if len(labels) > MOST_LABELS:
        yield f"{len(labels)} labels are more than {MOST_LABELS}"
    for label in labels[:MOST_LABELS]:
        if label in RESERVED:
            yield f"{label} is a name that Ray uses for itself"
        if not re.fullmatch(LABEL, label):
            yield f"{label[:80]!a} is not a label: a label is 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit"


def column_text(needs: Needs) -> str:
    """Return it as the store keeps it beside a task; empty: nothing."""
    return f"{needs.gpu} {needs.label}".strip() if needs else ""


def needs_of_column(text: str) -> Needs:
    """Return what ``column_text`` was made of."""
    if not text:
        return NOTHING
    gpu, _, label = text.partition(" ")
    return Needs(int(gpu), label)
