"""Service tiers without room: a model at a tier is parked as one of its own,
gives slots away, and slows down no one else.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from replacing import replace

from batchd.governor import Governor, Grant, WantedCall
from batchd.governor.outages import full
from batchd.records import (
    Cause,
    Failure,
    FailureKind,
    Price,
    Rate,
    Reason,
    Ref,
    Scope,
    Usage,
    sold_as,
    untiered,
)
from tests.patience import PATIENCE_S
from tests.unit.test_governor import Reported, Task, governor

HALF = Rate(input=500, cached_input=500, output=500)
PRICE = Price(
    rates=(replace(HALF, input=1000, output=1000),), source="config", tiers={"flex": (HALF,)}
)
USED = Usage(calls=1, input_tokens=500, output_tokens=500)
FULL = "p/m at x has had too many requests or tokens (HTTP 429): Resource Unavailable"
RATE = "p/m at x has had too many requests or tokens (HTTP 429): Rate limit reached on requests per min"


class Flex(Task):
    """A task whose calls ask for flex."""

    def __init__(self, governor: Governor, name: str, fallback_s: float | None = None) -> None:
        super().__init__(governor, name)
        self.fallback_s = fallback_s

    def call(self, price: Price | None = PRICE) -> WantedCall:
        """Return its next call."""
        more: dict[str, Any] = {"tier": "flex", "fallback_s": self.fallback_s}
        return replace(super().call(price or PRICE), **more)

    def refused(self, message: str = FULL, retry_after_s: float | None = None) -> None:
        """Say that its call met a 429."""
        failure = Failure(
            kind=FailureKind.RATE_LIMITED,
            message=message,
            http_status=429,
            retry_after_s=retry_after_s,
        )
        self.answered.clear()
        self._governor.failed(self.call(), failure, self._answered)

    def done(self, tier: str = "flex") -> None:
        """Say that its call was answered."""
        self._governor.answered(self.ref, 0.5, USED, tier=tier)

    @property
    def tiers(self) -> list[str]:
        """The tiers that it was granted."""
        return [answer.tier for answer in self.answers if isinstance(answer, Grant)]

    async def granted(self) -> None:
        """Return once it is."""
        await asyncio.wait_for(self.answered.wait(), PATIENCE_S)


def test_only_what_is_no_rate_limit_fills_a_tier() -> None:
    """A 429 in words about requests or tokens a minute is the account's;
    one to a standard call is no tier's.
    """

    refused = Failure(kind=FailureKind.RATE_LIMITED, message=FULL, http_status=429)
    assert full("flex", refused)
    assert full("flex", replace(refused, message="no room"))
    assert not full("standard", refused)
    assert not full("flex", replace(refused, message=RATE))
    assert not full("flex", replace(refused, kind=FailureKind.OVERLOADED))


def test_a_model_may_have_an_at_in_its_name() -> None:
    """Only a tier behind it is none of the name."""
    assert untiered(sold_as("p/m@2026", "flex")) == "p/m@2026"
    assert untiered("p/m@2026") == sold_as("p/m@2026", "standard") == "p/m@2026"
    assert untiered("p/@flex") == "p/"


def test_a_full_tier_slows_no_one_else_down() -> None:
    """However often it refuses: standard calls go at once,
    and neither provider nor model is parked, but the model at that tier.
    """

    async def scenario() -> None:
        watched = Reported()
        g = governor(watched, max_concurrent=8, max_retries=4)
        flex, standard = Flex(g, "f"), Task(g, "s")
        flex.ask(PRICE)
        for _ in range(5):
            await flex.granted()
            flex.refused(retry_after_s=0.0)
        assert (flex.parked.name, flex.tiers) == ("p/m@flex", ["flex"] * 5)
        before = g.figures()["p"]
        assert (before["paused_s"], before["rpm"], before["under_way"]) == (0.0, 0, 0)
        for _ in range(20):
            standard.answered.clear()
            standard.ask(PRICE)
            await asyncio.wait_for(standard.answered.wait(), PATIENCE_S)
            assert isinstance(standard.answers[-1], Grant)
            g.answered(standard.ref, 1.0, USED)
        assert watched.of[0] == ("Parked", "p/m@flex", Cause.TIER)
        assert {name for _, name, *_ in watched.of} == {"p/m@flex"}
        assert g.waiting == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "spent"), [(429, 0.0), (200, 0.5)])
def test_no_room_under_status_200_may_have_been_billed(status: int, spent: float) -> None:
    """The journal counts it as such, and so do the limits on money:
    a response can fail when it was under way.
    """

    async def scenario() -> None:
        g = governor()
        flex = Flex(g, "f")
        flex.ask(PRICE)
        failure = Failure(kind=FailureKind.RATE_LIMITED, message="no room", http_status=status)
        assert failure.unsettled == bool(spent)
        g.failed(flex.call(), failure, flex._answered)
        assert g.money.figures()["spent_usd"] == spent
        assert g.money.figures()["reserved_usd"] == 0.0
        assert g.withdraw(flex.ref)

    asyncio.run(scenario())


def test_a_rate_limit_under_a_tier_slows_the_provider_as_ever() -> None:
    """It is about the account, whichever tier it met."""

    async def scenario() -> None:
        g = governor()
        flex = Flex(g, "f")
        flex.ask(PRICE)
        flex.refused(RATE, retry_after_s=30.0)
        assert g.figures()["p"]["paused_s"] > 0
        assert g.withdraw(flex.ref)

    asyncio.run(scenario())


def test_one_call_tries_a_parked_tier_and_its_answer_lets_all_go() -> None:
    """No crowd runs into it: until one call is answered, all others are turned away."""

    async def scenario() -> None:
        watched = Reported()
        g = governor(watched, max_concurrent=8, max_retries=0)
        tasks = [Flex(g, str(i)) for i in range(8)]
        for task in tasks:
            task.ask(PRICE)
        for task in tasks:
            task.refused(retry_after_s=0.01)
            assert task.parked.cause is Cause.TIER
        async with asyncio.timeout(PATIENCE_S):
            while watched.of[-1] != ("HalfOpened", "p/m@flex"):  # noqa: ASYNC110 (news come one by one)
                await asyncio.sleep(0.005)
        for task in tasks:
            task.ask(PRICE)
        assert [isinstance(task.answers[-1], Grant) for task in tasks] == [True] + [False] * 7
        tasks[0].done()
        assert watched.of == [
            *(("Parked", "p/m@flex", Cause.TIER), ("HalfOpened", "p/m@flex")),
            ("Closed", "p/m@flex"),
        ]
        for task in tasks[1:]:
            task.answered.clear()
            task.ask(PRICE)
        for task in tasks[1:]:
            await task.granted()
            task.done()
            assert isinstance(task.answers[-1], Grant)

    asyncio.run(scenario())


@pytest.mark.parametrize("fallback_s", [0.0, 0.05])
def test_a_call_goes_on_at_the_standard_price_when_it_may(fallback_s: float) -> None:
    """At once, or after its time; all of that price was set aside from the first try on.

    Its next one asks again.
    """

    async def scenario() -> None:
        g = governor()
        flex = Flex(g, "f", fallback_s)
        flex.ask(PRICE)
        flex.refused(retry_after_s=600.0)
        if fallback_s:
            assert flex.parked.again_s == pytest.approx(fallback_s, abs=fallback_s)
            await asyncio.sleep(fallback_s)
            flex.ask(PRICE)
        await flex.granted()
        assert flex.tiers == ["flex", "standard"]
        reserved = [a.reserved_usd for a in flex.answers if isinstance(a, Grant)]
        assert reserved == pytest.approx([1.0, 1.0])
        flex.done("standard")
        g.outages.close("p/m@flex")
        flex.ask(PRICE)
        assert flex.tiers == ["flex", "standard", "flex"]

    asyncio.run(scenario())


def test_a_task_that_waits_long_for_its_tier_gives_its_slot_away() -> None:
    """Its model at that tier is parked, not at others; the daemon learns when one may try."""

    async def scenario() -> None:
        watched = Reported()
        g = governor(watched, max_parked_s=1000.0)
        flex = Flex(g, "f")
        flex.ask(PRICE)
        flex.refused(retry_after_s=600.0)
        park = flex.parked
        assert (park.scope, park.name, park.cause) == (Scope.MODEL, "p/m@flex", Cause.TIER)
        assert (park.message, park.again_s) == (FULL, None)
        other = Flex(g, "o", 700.0)
        other.ask(PRICE)
        assert other.tiers == []
        assert other.parked.again_s == pytest.approx(700.0, abs=PATIENCE_S)
        g.outages.retry("p/m@flex")
        assert watched.of[-1] == ("HalfOpened", "p/m@flex")
        other.ask(PRICE)
        assert other.tiers == ["flex"]

    asyncio.run(scenario())


def test_where_nothing_may_be_parked_a_tier_without_room_ends_the_task() -> None:
    """After the longest wait that there is, as with a provider that does not answer."""

    async def scenario() -> None:
        g = governor(max_parked_s=0.0)
        flex = Flex(g, "f")
        flex.ask(PRICE)
        flex.refused(retry_after_s=600.0)
        assert flex.refusal.reason is Reason.PROVIDER_UNAVAILABLE
        assert flex.refusal.error.message == FULL
        g.close_task(Ref("b", "f"))

    asyncio.run(scenario())


def test_but_not_where_the_standard_tier_takes_its_call() -> None:
    """It waits for its time in its slot, as do others of that tier."""

    async def scenario() -> None:
        g = governor(max_parked_s=0.0, max_retries=1, first_backoff_s=0.0, max_backoff_s=0.0)
        first, second = Flex(g, "a", 0.2), Flex(g, "b", 0.2)
        first.ask(PRICE)
        while first.tiers[-1] == "flex":
            first.refused()
            await first.granted()
        second.ask(PRICE)
        await second.granted()
        assert second.tiers == ["standard"]
        assert all(isinstance(answer, Grant) for answer in first.answers + second.answers)

    asyncio.run(scenario())
