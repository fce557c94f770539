"""What tasks need of their machine, and how many workers of each kind there should be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from batchd.pool.engines.shares import shares
from batchd.records import Has, Needs
from batchd.records.tasks import NOTHING, column_text, needs_of_column, wrong

GPU, DISK = Needs(gpu=1), Needs(label="big-disk")


def test_gpus_that_others_hold_are_not_had() -> None:
    """A label is had whatever others do;
    a task that needs no GPU does not care how many are held.
    """
    has = Has(gpus=2, labels=("big-disk",))
    assert has.covers(Needs(2, "big-disk"))
    assert not has.covers(Needs(2), held=1)
    assert has.covers(GPU, held=1)
    assert has.covers(DISK, held=2)
    assert has.covers(NOTHING, held=5)
    assert not has.covers(Needs(label="arm"))


def test_needs_are_said_in_words() -> None:
    """As people read them."""
    assert str(GPU) == "1 GPU"
    assert str(Needs(2, "big-disk")) == "2 GPUs and the label big-disk"


@pytest.mark.parametrize("needs", [NOTHING, GPU, DISK, Needs(8, "a100")])
def test_the_store_gives_back_what_it_was_given(needs: Needs) -> None:
    """In one column."""
    assert needs_of_column(column_text(needs)) == needs


def test_what_a_machine_is_said_to_have_is_looked_at() -> None:
    """It comes over the wire."""
    assert not [*wrong(1, ("big-disk", "a.b_c"))]
    assert len([*wrong(-1, ("", "a b", "x" * 64))]) == 4


def shared(work: Mapping[Needs, int], most: int, *impossible: Needs) -> Mapping[Needs, int]:
    """Return the shares of workers of four agents."""
    found = shares(
        work, most=most, least=0, agents=4, possible=lambda needs: needs not in impossible
    )
    return {needs: count for needs, count in found.items() if count}


def test_each_task_with_gpus_has_a_worker() -> None:
    """Tasks with a label share one, as those do that need nothing."""
    work = {NOTHING: 9, GPU: 3, DISK: 5}
    assert shared(work, 100) == {NOTHING: 3, GPU: 3, DISK: 2}


def test_kinds_share_what_may_be() -> None:
    """Each has a worker before one has two, the one with fewer GPUs first;
    tasks that need nothing work there too.
    """
    assert shared({NOTHING: 100, GPU: 10, DISK: 10}, 3) == {GPU: 1, DISK: 2}
    assert shared({NOTHING: 100, GPU: 1}, 3) == {GPU: 1, NOTHING: 2}


def test_what_no_node_has_keeps_none_from_the_others() -> None:
    """One worker is asked for, so that a cluster that can grow does."""
    assert shared({NOTHING: 100, GPU: 10}, 3, GPU) == {GPU: 1, NOTHING: 3}
