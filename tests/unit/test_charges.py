"""What calls are booked at: by the tier that served them,
or by what their provider says that they cost.
"""

from __future__ import annotations

import random

import pytest
from replacing import replace

from batchd.agent.charges import Charge, charge
from batchd.events import CallAnswered, CallStarted, TaskStarted, Terms
from batchd.records import STANDARD, Answer, Cost, ModelSetup, Price, Purpose, Rate, Tally, Usage
from batchd.taskstate import fold

RATE = Rate(input=1.0, cached_input=0.1, cache_write=1.25, output=2.0)
HALF = Rate(input=0.5, cached_input=0.05, cache_write=0.625, output=1.0)
DOUBLE = Rate(input=2.0, cached_input=0.2, cache_write=2.5, output=4.0)
PRICE = Price(rates=(RATE,), source="config", tiers={"flex": (HALF,), "priority": (DOUBLE,)})
MODEL = ModelSetup(name="p/m", price=PRICE)
USAGE = Usage(calls=1, input_tokens=1000, output_tokens=500)
#: What that costs in each tier.
COST = {STANDARD: 0.002, "flex": 0.001, "priority": 0.004}


def asked(tier: str, reserved_usd: float | None = 0.01) -> CallStarted:
    """Return a call that asks for a tier."""
    return CallStarted(
        at=2.0,
        purpose=Purpose.AGENT,
        input_tokens=1000,
        max_output_tokens=500,
        reserved_usd=reserved_usd,
        reserved_tokens=(1200, 600),
        tier=tier,
    )


def paid(
    call: CallStarted, answer: Answer, setup: ModelSetup = MODEL
) -> tuple[Charge, Cost | None]:
    """Return how an answer is booked, and what that comes to."""
    booked = charge(answer, call, setup, believed=True)
    event = CallAnswered(
        at=3.0, purpose=Purpose.AGENT, answer=answer, tier=booked.tier, cost=booked.cost
    )
    return booked, event.paid(setup.price)


@pytest.mark.parametrize(
    ("tier", "said", "served"),
    [
        (STANDARD, "", STANDARD),
        (STANDARD, "default", STANDARD),
        (STANDARD, "flex", "flex"),
        ("flex", "flex", "flex"),
        ("flex", "FLEX ", "flex"),
        ("flex", "default", STANDARD),
        ("priority", "default", STANDARD),
        ("priority", "priority", "priority"),
        # A server that does not say may not know of tiers: the dearer of both is booked.
        ("flex", "", STANDARD),
        ("flex", "auto", STANDARD),
        ("priority", "", "priority"),
    ],
)
def test_a_call_is_booked_at_the_tier_that_served_it(tier: str, said: str, served: str) -> None:
    """The usage's own tier counts, whatever was asked for."""
    booked, cost = paid(asked(tier), Answer(content="Done.", usage=USAGE, service_tier=said))
    assert (booked.tier, booked.doubt) == (served, "")
    assert cost is not None
    assert cost.total == pytest.approx(COST[served])


def test_a_tier_without_a_known_price_is_booked_at_what_was_set_aside() -> None:
    """Never at the standard price; and where nothing was set aside,
    as no price was known, the cost is not known either.
    """
    answer = Answer(content="Done.", usage=USAGE, service_tier="scale")
    booked, cost = paid(asked("flex"), answer)
    assert booked.tier == "scale"
    assert "the service tier scale served it, whose price is not known" in booked.doubt
    assert cost is not None
    assert cost.total == pytest.approx(0.01)
    unlisted = replace(MODEL, price=replace(PRICE, tiers={}))
    assert paid(asked("flex", None), replace(answer, service_tier="flex"), unlisted) == (
        Charge("flex"),
        None,
    )
    # A gateway that does not say: it may have been the tier whose price is not known.
    assert paid(asked("flex", None), replace(answer, service_tier=""), unlisted)[1] is None
    unpriced = replace(MODEL, price=None)
    assert paid(asked(STANDARD, None), replace(answer, stated_usd=1.0), unpriced)[1] is None


def test_what_a_provider_says_that_a_call_costs_is_booked_within_what_was_set_aside() -> None:
    """OpenRouter's own figure counts up to that; 0 is no figure, and no price makes it one."""
    answer = Answer(content="Done.", usage=USAGE, stated_usd=0.0031)
    booked, cost = paid(asked(STANDARD), answer)
    assert booked.doubt == ""
    assert cost is not None
    assert cost.total == pytest.approx(0.0031)
    assert cost.input == pytest.approx(cost.output)
    dear, most = paid(asked(STANDARD), replace(answer, stated_usd=0.02))
    assert "it costs $0.02" in dear.doubt
    assert most is not None
    assert most.total == pytest.approx(0.01)
    for nothing in (0.0, None):
        booked, cost = paid(asked(STANDARD), replace(answer, stated_usd=nothing))
        assert booked == Charge(STANDARD)
        assert cost is not None
        assert cost.total == pytest.approx(0.002)


def test_a_usage_that_is_not_believed_costs_what_was_set_aside() -> None:
    """In whichever tier, and whatever the provider says of the cost."""
    answer = Answer(content="Done.", usage=USAGE, service_tier="flex", stated_usd=0.003)
    booked = charge(answer, asked("flex"), MODEL, believed=False)
    assert booked.tier == "flex"
    assert booked.cost is not None
    assert booked.cost.total == pytest.approx(0.01)


def test_no_call_is_booked_above_what_was_set_aside_for_it() -> None:
    """Held by its own tokens, in each tier and with any cache,
    as long as it keeps to them and to its tier.
    """
    rng = random.Random(12)
    cliff = replace(RATE, above=50_000, input=5.0, cached_input=0.5, cache_write=6.25, output=9.0)
    price = Price(rates=(RATE, cliff), source="config", tiers=PRICE.tiers)
    for _ in range(2000):
        given, said = int(10 ** rng.uniform(0, 5)), rng.randint(0, 10_000)
        tier = rng.choice([STANDARD, "flex", "priority"])
        at = price.at(tier)
        assert at is not None
        reserved = at.most(given, said).total
        used = rng.randint(0, given)
        cached = rng.randint(0, used)
        usage = Usage(
            calls=1,
            input_tokens=used,
            cached_input_tokens=cached,
            cache_write_tokens=rng.randint(0, used - cached),
            output_tokens=rng.randint(0, said),
        )
        call = replace(asked(tier, reserved), reserved_tokens=(given, said))
        stated = rng.choice([None, rng.uniform(0, 2 * reserved)])
        answer = Answer(content="", usage=usage, service_tier=tier, stated_usd=stated)
        _, cost = paid(call, answer, replace(MODEL, price=price))
        assert cost is not None
        assert cost.total <= reserved + 1e-12


def test_a_task_adds_up_by_tier_and_what_the_cache_saved() -> None:
    """Each at its own price; of a provider that says nothing of its cache nothing is known."""
    cached = replace(USAGE, cached_input_tokens=800, cache_reported_tokens=1000)
    made = [TaskStarted(at=1.0, terms=Terms(model=MODEL, judge=MODEL))]
    answers = [
        CallAnswered(
            at=3.0, purpose=Purpose.AGENT, answer=Answer(content="", usage=usage), tier=tier
        )
        for usage, tier in ((cached, "flex"), (USAGE, "flex"), (USAGE, STANDARD))
    ]
    state = fold("Work.", [*made, *answers])
    assert {name: served.calls for name, served in state.by_tier.items()} == {
        "flex": 2,
        STANDARD: 1,
    }
    saved = 800 * (0.5 - 0.05) / 1e6
    flex = state.by_tier["flex"]
    assert (flex.input_usd, flex.output_usd) == pytest.approx((0.001 - saved, 0.001))
    assert state.cache_saved_usd == pytest.approx(saved)
    assert state.tally.cache_share == 0.8
    silent = fold("Work.", [*made, *answers[1:]])
    assert (silent.cache_saved_usd, silent.tally.cache_share) == (None, None)
    assert silent.by_tier["flex"] == Tally.of_call(USAGE, PRICE.at("flex").cost(USAGE))  # type: ignore[union-attr]
