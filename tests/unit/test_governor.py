"""The governor: who is granted when, what is set aside, what ends a task.

Time is the loop's own, made short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from replacing import replace

from batchd.config import Config
from batchd.config.sections import BudgetSection, GovernorSection as Section, ProviderSection
from batchd.governor import Governor, Grant, ParkDecision, Refusal, WantedCall
from batchd.governor.news import (
    BatchSpent,
    Closed,
    GaveUp,
    HalfOpened,
    News,
    Overlong,
    Parked,
    Report,
)
from batchd.records import (
    Cause,
    Failure,
    FailureKind,
    Hours,
    Price,
    Rate,
    Reason,
    Ref,
    Scope,
    TaskStatus,
    Usage,
)

#: A dollar a thousand tokens: 500 in and 500 out cost at most one.
PRICE = Price(rates=(Rate(input=1000, cached_input=1000, output=1000),), source="config")


def governor(
    report: Report = lambda _news: None,
    *,
    max_concurrent: int = 2,
    per_day: float = 0.0,
    max_retries: int = 2,
    missing: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
    **more: float,
) -> Governor:
    """Return a governor over one provider, with short waits and no jitter."""
    waits = {"first_backoff_s": 0.02, "max_backoff_s": 0.05, "probe_s": 0.1, "max_probe_s": 0.3}
    config = Config(
        providers={"p": ProviderSection(base_url="http://x", max_concurrent=max_concurrent)},
        governor=Section(max_retries=max_retries, **{**waits, **more}),
        budget=BudgetSection(per_day_usd=per_day),
    )
    return Governor(config, missing or {}, report, clock=clock, jitter=lambda: 1.0)


class Reported:
    """Notes the governor's news: each as its kind, and what it is about."""

    def __init__(self) -> None:
        self.of: list[tuple[str, ...]] = []

    def __call__(self, news: News) -> None:
        """Note it."""
        match news:
            case Parked(name, cause, message) | GaveUp(name, cause, message):
                assert message
                self.of.append((type(news).__name__, name, cause))
            case HalfOpened(name) | Closed(name):
                self.of.append((type(news).__name__, name))
            case Overlong(model, message):
                assert "output_limit_field" in message
                self.of.append(("Overlong", model))
            case BatchSpent(batch, message):
                assert "the batch's budget" in message
                self.of.append(("BatchSpent", batch))


class Task:
    """A task that asks, and notes what it is answered and when."""

    def __init__(self, governor: Governor, name: str, *, limit: float = 0.0) -> None:
        self.ref = Ref("b", name)
        self.answers: list[Grant | Refusal | ParkDecision] = []
        self.at: list[float] = []
        self.answered = asyncio.Event()
        self._governor = governor
        governor.money.open_task(self.ref, limit, 0.0)

    def call(self, price: Price | None = None) -> WantedCall:
        """Return its next call."""
        return WantedCall(
            ref=self.ref,
            model="p/m",
            price=price,
            input_tokens=500,
            max_output_tokens=500,
            timeout_s=600.0,
        )

    def ask(self, price: Price | None = None) -> None:
        """Request a permit."""
        self._governor.ask(self.call(price), self._answered)

    def failed(self, kind: FailureKind, **more: Any) -> None:
        """Say that its call failed."""
        failure = Failure(kind=kind, message="no", **more)
        self.answered.clear()
        self._governor.failed(self.call(), failure, self._answered)

    def _answered(self, answer: Grant | Refusal | ParkDecision) -> None:
        self.answers.append(answer)
        self.at.append(time.monotonic())
        self.answered.set()

    @property
    def parked(self) -> ParkDecision:
        """The last answer, which must be to wait."""
        (answer,) = self.answers[-1:]
        assert isinstance(answer, ParkDecision)
        return answer

    @property
    def refusal(self) -> Refusal:
        """The last answer, which must be a refusal."""
        (answer,) = self.answers[-1:]
        assert isinstance(answer, Refusal)
        return answer


def test_permits_are_granted_in_order_up_to_the_limit() -> None:
    """First come, first served; a call's end makes room for exactly the next one."""

    async def scenario() -> None:
        g = governor(max_concurrent=2)
        tasks = [Task(g, str(i)) for i in range(4)]
        for task in tasks:
            task.ask()
        assert [len(t.answers) for t in tasks] == [1, 1, 0, 0]
        assert g.waiting == 2
        g.answered(tasks[0].ref, 0.0)
        assert [len(t.answers) for t in tasks] == [1, 1, 1, 0]
        g.close_task(tasks[1].ref)  # its worker died
        assert [len(t.answers) for t in tasks] == [1, 1, 1, 1]

    asyncio.run(scenario())


def test_a_withdrawn_request_is_never_answered() -> None:
    """Its place in the queue is gone; one that is granted cannot be withdrawn."""

    async def scenario() -> None:
        g = governor(max_concurrent=1)
        first, second, third = (Task(g, n) for n in "abc")
        for task in (first, second, third):
            task.ask()
        assert not g.withdraw(first.ref)
        assert g.withdraw(second.ref)
        g.answered(first.ref, 0.0)
        assert (second.answers, len(third.answers)) == ([], 1)

    asyncio.run(scenario())


def test_retry_after_is_waited_out_by_everyone() -> None:
    """A 429 pauses the provider, not only the call that met it,
    which then stands behind the others.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=1)
        first, second = Task(g, "a"), Task(g, "b")
        first.ask()
        second.ask()
        begun = time.monotonic()
        first.failed(FailureKind.RATE_LIMITED, retry_after_s=0.1)
        await second.answered.wait()
        assert second.at[0] - begun >= 0.1
        assert len(first.answers) == 1
        first.answered.clear()
        g.answered(second.ref, 0.0)
        await first.answered.wait()  # paced now
        assert isinstance(first.answers[1], Grant)

    asyncio.run(scenario())


def test_a_call_is_repeated_with_growing_pauses_and_then_given_up() -> None:
    """max_retries times, while the provider answers others;
    the end names it and counts the tries.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        begun = time.monotonic()
        for _ in range(2):
            task.failed(FailureKind.OVERLOADED)
            other.ask()
            g.answered(other.ref, 0.0)
            await task.answered.wait()
        assert task.at[1] - begun >= 0.02
        assert task.at[2] - task.at[1] >= 0.04
        task.failed(FailureKind.OVERLOADED)
        assert task.refusal.reason is Reason.PROVIDER_UNAVAILABLE
        assert task.refusal.error.retries == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FailureKind.FORBIDDEN, Reason.BAD_REQUEST),
        (FailureKind.BAD_REQUEST, Reason.BAD_REQUEST),
        (FailureKind.CONTENT_FILTER, Reason.CONTENT_FILTER),
        (FailureKind.CONTEXT_OVERFLOW, Reason.CONTEXT_OVERFLOW),
    ],
)
def test_what_no_repetition_fixes_ends_the_task(kind: FailureKind, reason: Reason) -> None:
    """At once, with its own reason, and its permit is free."""

    async def scenario() -> None:
        g = governor(max_concurrent=1)
        first, second = Task(g, "a"), Task(g, "b")
        first.ask()
        first.failed(kind)
        assert (first.refusal.status, first.refusal.reason) == (TaskStatus.ERROR, reason)
        second.ask()
        assert isinstance(second.answers[0], Grant)

    asyncio.run(scenario())


def test_money_is_set_aside_before_the_call_and_settled_after_it() -> None:
    """A limit holds against what is spent, what is under way and what the next call may cost."""

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        first, second, third = (Task(g, n) for n in "abc")
        first.ask(PRICE)
        g.answered(first.ref, 0.0, Usage(calls=1, input_tokens=500))
        first.answers.clear()
        g.money.open_batch("b", 2.0, 0.0)
        for task in (first, second, third):
            task.ask(PRICE)
        # The third waits: what the others do not use up may be enough for it.
        assert [len(t.answers) for t in (first, second, third)] == [1, 1, 0]
        g.answered(first.ref, 0.25)
        assert third.answers == []
        g.answered(second.ref, 0.25)
        assert third.answers == [Grant(1.0, (500, 500))]
        g.close_task(third.ref)  # its worker died: perhaps paid
        first.ask(PRICE)
        assert (first.refusal.status, first.refusal.reason) == (TaskStatus.TIMEOUT, Reason.BUDGET)
        assert "batch" in first.refusal.error.message

    asyncio.run(scenario())


def test_a_model_with_more_tokens_than_we_count_has_more_set_aside() -> None:
    """A provider's tokens need not be ours:
    what a call may cost follows the worst that was seen.
    """

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a")
        call = replace(task.call(PRICE), input_tokens=2000)
        for used, granted in ((2000, 2.5), (3000, 2.5), (2500, 3.5)):
            g.ask(call, task._answered)
            (answer,) = task.answers[-1:]
            assert isinstance(answer, Grant)
            assert answer.reserved_usd == pytest.approx(granted)
            g.answered(task.ref, 0.0, Usage(calls=1, input_tokens=used))

    asyncio.run(scenario())


def test_what_a_provider_adds_to_each_request_is_set_aside_too() -> None:
    """A hidden prompt is tokens on top of a short request, and no measure for a long one;
    nor is output held to its limit.
    """

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a")

        def reserved(input_tokens: int) -> float:
            g.ask(replace(task.call(PRICE), input_tokens=input_tokens), task._answered)
            (answer,) = task.answers[-1:]
            assert isinstance(answer, Grant)
            assert answer.reserved_usd is not None
            return answer.reserved_usd

        assert reserved(500) == pytest.approx(1.0)
        g.answered(task.ref, 0.0, Usage(calls=1, input_tokens=2500))
        assert reserved(500) == pytest.approx(3.0)
        g.answered(task.ref, 0.0, Usage(calls=1, input_tokens=2500, output_tokens=1000))
        assert reserved(10_000) == pytest.approx(12.0 + 1.0)

    asyncio.run(scenario())


def test_one_answer_ends_no_task_and_what_two_came_to_fades() -> None:
    """After one answer that came to ten times what was expected, a call still goes where that much
    would not fit, by itself; after two it is refused; after twenty others both are forgotten.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9)
        task, capped, other = Task(g, "a"), Task(g, "b", limit=2.0), Task(g, "c")

        async def asks(who: Task) -> Grant | Refusal | ParkDecision:
            who.answered.clear()
            who.ask(PRICE)
            await who.answered.wait()
            return who.answers[-1]

        async def answered(output_tokens: int) -> None:
            assert isinstance(await asks(task), Grant)
            used = Usage(calls=1, input_tokens=500, output_tokens=output_tokens)
            g.answered(task.ref, 0.0, used)

        await answered(5000)
        assert reported.of == [("Overlong", "p/m")]
        g.money.open_batch("b", 5.0, 0.0)
        assert await asks(capped) == Grant(1.0, (500, 500))
        other.ask(PRICE)
        assert not other.answers, "the two together may come to more"
        g.answered(capped.ref, 0.0)
        assert other.answers == [Grant(1.0, (500, 500))]
        g.answered(other.ref, 0.0)
        g.money.close_batch("b")
        await answered(5000)
        await asks(capped)
        assert capped.refusal.reason is Reason.BUDGET
        assert g.estimates.overlong()
        g.retune(g._config, {})
        await answered(500)
        assert not g.estimates.overlong(), "a reload may have changed that"
        await answered(5000)
        for _ in range(20):
            assert g.estimates.overlong()
            await answered(500)
        assert await asks(capped) == Grant(1.0, (500, 500))
        assert not g.estimates.overlong()

    asyncio.run(scenario())


def test_a_tier_has_its_own_price_set_aside_and_where_it_may_fall_back_the_dearer() -> None:
    """Half for flex; all of it where the call may go on in the standard tier,
    or where it was served there before.
    """

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a")
        rate = Rate(input=500, cached_input=500, output=500)
        price = replace(PRICE, tiers={"flex": (rate,), "priority": (replace(rate, input=2000),)})

        def reserved(**more: Any) -> float | None:
            g.ask(replace(task.call(price), **more), task._answered)
            (answer,) = task.answers[-1:]
            assert isinstance(answer, Grant)
            assert answer.tier == more.get("tier", "standard")
            return answer.reserved_usd

        used = Usage(calls=1, input_tokens=500, output_tokens=500)
        for tier, fallback_s, usd in (
            ("standard", None, 1.0),
            ("flex", None, 0.5),
            ("flex", 60.0, 1.0),
            ("priority", 60.0, 1.25),
        ):
            assert reserved(tier=tier, fallback_s=fallback_s) == pytest.approx(usd)
            g.answered(task.ref, 0.0, used, tier=tier)
        # Its provider has it served by the standard one all the same.
        assert reserved(tier="flex") == pytest.approx(0.5)
        g.answered(task.ref, 0.0, used, tier="standard")
        assert reserved(tier="flex") == pytest.approx(1.0)
        g.answered(task.ref, 0.0, used, tier="flex")

    asyncio.run(scenario())


def test_the_hour_decides_what_is_set_aside() -> None:
    """The half at cheap hours; the whole where a dear hour begins before the call's time is over,
    or two minutes after it: then a limit between them holds it back.
    """
    half = replace(PRICE.rates[0], input=500.0, output=500.0)
    # 01:00 to 04:00 of 1970-01-01 and all days after it.
    hours = (Hours(rates=(half,)), Hours(rates=PRICE.rates, utc=((60, 240),)))
    price, now = replace(PRICE, hours=hours), [0.0]

    async def asked(hour: int, minute: int, limit: float) -> float | None:
        now[0] = hour * 3600.0 + minute * 60
        task = Task(governor(clock=lambda: now[0]), "a", limit=limit)
        task.ask(price)
        (answer,) = task.answers
        return answer.reserved_usd if isinstance(answer, Grant) else None

    async def scenario() -> None:
        for hour, minute, limit, aside in (
            (0, 47, 0.6, 0.5),
            (0, 49, 0.6, None),
            (0, 49, 1.0, 1.0),
            (3, 30, 0.6, None),
            (4, 1, 0.6, None),
            (4, 3, 0.6, 0.5),
            (23, 47, 0.6, 0.5),
        ):
            assert await asked(hour, minute, limit) == aside, (hour, minute)

    asyncio.run(scenario())


def test_a_tier_that_was_not_asked_for_is_set_aside_too_once_it_was_seen() -> None:
    """A provider may serve calls that ask for nothing in a dearer tier,
    as its account is set up.
    """

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a")
        dear = replace(PRICE.rates[0], input=2000)
        call = task.call(replace(PRICE, tiers={"priority": (dear,)}))
        used = Usage(calls=1, input_tokens=500, output_tokens=500)
        for usd, served in ((1.0, "priority"), (1.5, "scale"), (1.5, "standard")):
            g.ask(call, task._answered)
            (answer,) = task.answers[-1:]
            assert isinstance(answer, Grant)
            assert answer.reserved_usd == pytest.approx(usd)
            g.answered(task.ref, 0.0, used, tier=served)

    asyncio.run(scenario())


def test_a_tier_without_a_known_price_is_refused_under_a_limit() -> None:
    """The standard price is not its own."""

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a", limit=100.0)
        g.ask(replace(task.call(PRICE), tier="flex"), task._answered)
        assert task.refusal.reason is Reason.BAD_REQUEST
        assert "no price is known for p/m in the tier flex" in task.refusal.error.message
        free = Task(g, "b")
        g.ask(replace(free.call(PRICE), tier="flex"), free._answered)
        assert free.answers == [Grant(None, (500, 500), "flex")]

    asyncio.run(scenario())


def test_input_that_is_kept_for_long_is_set_aside_as_such_once_it_was_seen() -> None:
    """Writes for an hour cost twice:
    where a provider makes them, all input is expected to be one.
    """

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a")
        rate = replace(PRICE.rates[0], cache_write=1250, cache_write_long=2000)
        call = task.call(replace(PRICE, rates=(rate,)))
        used = Usage(calls=1, input_tokens=500, cache_write_tokens=500, cache_write_long_tokens=1)
        for usd in (1.125, 1.5):
            g.ask(call, task._answered)
            (answer,) = task.answers[-1:]
            assert isinstance(answer, Grant)
            assert answer.reserved_usd == pytest.approx(usd)
            g.answered(task.ref, 0.0, used)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.RATE_LIMITED])
def test_a_failure_that_may_have_been_billed_counts_as_spent(kind: FailureKind) -> None:
    """A timeout may have been paid, a 429 was not."""

    async def scenario() -> None:
        g = governor()
        task = Task(g, "a", limit=1.5)
        task.ask(PRICE)
        failure = Failure(kind=kind, message="no")
        g.failed(task.call(PRICE), failure, task._answered)
        await asyncio.sleep(0.05)
        granted = isinstance(task.answers[-1], Grant)
        assert granted == (not failure.unsettled)

    asyncio.run(scenario())


def test_the_day_ends_at_midnight_utc() -> None:
    """What was spent yesterday does not count today."""

    async def scenario() -> None:
        now = [86400.0 * 3 - 1]
        config = replace(governor()._config, budget=BudgetSection(per_day_usd=1.0))
        reported = Reported()
        g = Governor(
            config, {}, reported, clock=lambda: now[0], booked={2: 0.5, 3: 0.0}.__getitem__
        )
        today = g.money.today()
        task = Task(g, "a")
        task.ask(PRICE)
        assert (task.parked.scope, task.parked.cause) == (Scope.DAY, Cause.BUDGET)
        assert reported.of == [], "the others may be cheaper"
        assert g.waits_for_day(g.money.wanted[task.ref])
        assert g.money.today() == today
        now[0] += 2
        assert g.money.today() != today
        assert not g.waits_for_day(g.money.wanted[task.ref])
        task.ask(PRICE)
        assert task.answers[-1] == Grant(1.0, (500, 500))

    asyncio.run(scenario())


def test_a_call_dearer_than_any_day_ends_its_task() -> None:
    """No day can pay for it, so that it would wait for ever:
    the end names the price, the limit and the fix.
    """

    async def scenario() -> None:
        for waits_s in (0, 3600):
            g = governor(per_day=0.5, max_parked_s=waits_s)
            task = Task(g, "a")
            task.ask(PRICE)
            assert (task.refusal.status, task.refusal.reason) == (TaskStatus.TIMEOUT, Reason.BUDGET)
            message = task.refusal.error.message
            for part in ("$1.00", "$0.5000", "per_day_usd", "max_output_tokens", "batchd retry"):
                assert part in message
            assert not g.waits_for_day(task.call(PRICE))

    asyncio.run(scenario())


def test_a_budget_that_is_lowered_ends_no_task() -> None:
    """What fitted into a day before it was lowered waits, and goes on once it is raised again."""

    async def scenario() -> None:
        g = governor(per_day=2.0)
        for per_day in (0.5, 0.1):
            g.retune(replace(g._config, budget=BudgetSection(per_day_usd=per_day)), {})
            task = Task(g, f"{per_day}")
            task.ask(PRICE)
            assert (task.parked.scope, task.parked.cause) == (Scope.DAY, Cause.BUDGET)
        g.retune(replace(g._config, budget=BudgetSection(per_day_usd=1.0)), {})
        assert not g.waits_for_day(task.call(PRICE))
        task.ask(PRICE)
        assert task.answers[-1] == Grant(1.0, (500, 500))

    asyncio.run(scenario())


def test_a_usage_that_is_not_believed_is_not_learnt_from() -> None:
    """What was set aside is booked, and the next call has as much set aside
    as if there had been none; else it has more.
    """

    async def scenario() -> None:
        counted = Usage(calls=1, input_tokens=1000, output_tokens=500)
        for believed, expected in (
            (False, Grant(1.0, (500, 500))),
            (True, Grant(1.5, (1000, 500))),
        ):
            g = governor(per_day=3000.0)
            odd, other = Task(g, "a"), Task(g, "b")
            odd.ask(PRICE)
            g.answered(odd.ref, 1.0, counted, believed=believed)
            other.ask(PRICE)
            assert other.answers == [expected]
            assert g.money.figures()["spent_usd"] == 1.0

    asyncio.run(scenario())


def test_what_was_learnt_from_a_short_call_is_believable_for_a_long_one() -> None:
    """A call of one token in and out that came to thousands makes no call
    of 500 a hundred thousand times as dear.
    """

    async def scenario() -> None:
        g = governor()
        short, long = Task(g, "a"), Task(g, "b")
        call = replace(short.call(PRICE), input_tokens=1, max_output_tokens=1)
        g.ask(call, short._answered)
        g.answered(short.ref, 1.0, Usage(calls=1, input_tokens=9001, output_tokens=9000))
        long.ask(PRICE)
        assert long.answers == [Grant(9.5 + 15.0, (9500, 15000))]

    asyncio.run(scenario())


def test_until_a_model_has_answered_a_tight_budget_is_used_with_caution() -> None:
    """It is not known yet how far its calls go beyond our estimates;
    a generous budget holds nothing up.
    """

    async def scenario() -> None:
        for limit, granted in ((15.0, 1), (100.0, 3)):
            g = governor(max_concurrent=9)
            g.money.open_batch("b", limit, 0.0)
            tasks = [Task(g, n) for n in "abc"]
            for task in tasks:
                task.ask(PRICE)
            assert sum(len(task.answers) for task in tasks) == granted
            g.answered(tasks[0].ref, 2.0, Usage(calls=1, input_tokens=500))
            assert sum(len(task.answers) for task in tasks) == 3

    asyncio.run(scenario())


def test_no_call_waits_for_the_end_of_calls_that_have_ended() -> None:
    """Three calls that set 0.1, 0.2 and 0.3 dollars aside leave nothing behind,
    not even a rest of a float.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        g.money.open_batch("b", 5.0, 0.0)
        tasks = [Task(g, n) for n in "abc"]

        def ask(task: Task, model: str, tokens: int) -> None:
            call = replace(task.call(PRICE), model=model, input_tokens=tokens, max_output_tokens=0)
            g.ask(call, task._answered)

        ask(tasks[0], "p/known", 100)
        g.answered(tasks[0].ref, 0.0, Usage(calls=1, input_tokens=100))
        for task, tokens in zip(tasks, (100, 200, 300), strict=True):
            ask(task, "p/known", tokens)
        for task in tasks:
            g.answered(task.ref, 0.0)
        # Of a model that is not known yet a single call goes at a time, where the money is tight.
        ask(tasks[0], "p/new", 1000)
        assert isinstance(tasks[0].answers[-1], Grant)
        assert g.waiting == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [FailureKind.AUTH, FailureKind.QUOTA])
def test_what_every_call_would_meet_parks_the_provider(kind: FailureKind) -> None:
    """A task that waits or asks is turned away, until one call tries and is answered."""

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=2)
        first, second, third, fourth = (Task(g, n) for n in "abcd")
        for task in (first, second, third):
            task.ask()
        first.failed(kind)
        assert first.parked == ParkDecision(
            Scope.PROVIDER, "p", Cause(kind.value), "no", culprit=True
        )
        assert third.parked == replace(first.parked, culprit=False)
        second.failed(kind)  # it was under way: it changes nothing
        assert second.parked.cause is first.parked.cause
        await asyncio.sleep(0.35)
        assert reported.of == [("Parked", "p", Cause(kind.value)), ("HalfOpened", "p")]
        third.ask()
        fourth.ask()
        assert isinstance(third.answers[-1], Grant)
        assert isinstance(fourth.parked, ParkDecision)
        g.answered(third.ref, 0.0)
        assert reported.of[2:] == [("Closed", "p")]
        fourth.ask()
        assert isinstance(fourth.answers[-1], Grant)

    asyncio.run(scenario())


def test_a_provider_that_answers_no_request_is_tried_at_growing_intervals() -> None:
    """A failed try doubles the wait, however the provider failed to answer;
    one that came to nothing leaves room for another.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        for _ in range(2):
            task.failed(FailureKind.OVERLOADED)
            await task.answered.wait()
        task.failed(FailureKind.TIMEOUT)
        assert (task.parked.cause, task.parked.culprit) == (Cause.DOWN, True)
        assert "after 3 tries" in task.parked.message
        await asyncio.sleep(0.12)
        task.ask()
        task.failed(FailureKind.CONNECTION)
        assert isinstance(task.parked, ParkDecision)
        await asyncio.sleep(0.12)
        assert reported.of.count(("HalfOpened", "p")) == 1
        await asyncio.sleep(0.12)
        assert reported.of.count(("HalfOpened", "p")) == 2
        task.ask()
        g.close_task(task.ref)  # its worker died
        assert reported.of[-1] == ("HalfOpened", "p")
        other.ask()
        # It was refused for itself: the provider is there.
        other.failed(FailureKind.BAD_REQUEST)
        assert reported.of[-1] == ("Closed", "p")

    asyncio.run(scenario())


def test_the_long_wait_for_a_key_is_none_for_what_fails_next() -> None:
    """A provider that takes its key again, and is down then, is tried as one that is down."""

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9)
        task = Task(g, "a")
        task.ask()
        task.failed(FailureKind.AUTH)
        await asyncio.sleep(0.35)
        task.ask()
        task.failed(FailureKind.CONNECTION)
        assert task.parked.cause is Cause.DOWN
        await asyncio.sleep(0.15)
        assert reported.of.count(("HalfOpened", "p")) == 2

    asyncio.run(scenario())


def test_no_task_waits_where_nothing_may_be_parked() -> None:
    """With max_parked_s = 0, as in `run`, an outage ends everybody's task with its cause."""

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=1, max_parked_s=0)
        first, second = Task(g, "a"), Task(g, "b")
        first.ask()
        second.ask()
        first.failed(FailureKind.AUTH)
        for task in (first, second):
            assert (task.refusal.status, task.refusal.reason) == (TaskStatus.ERROR, Reason.AUTH)
        assert reported.of == [("GaveUp", "p", Cause.AUTH)]
        g.outages.close("p")
        second.ask()
        assert isinstance(second.answers[-1], Grant)

    asyncio.run(scenario())


def test_one_task_alone_does_not_condemn_a_provider_where_nothing_is_parked() -> None:
    """Its own request may be at fault;
    when a second task is answered no better, all of them end.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_parked_s=0, max_retries=0)
        tasks = [Task(g, name) for name in "abc"]
        for task in tasks:
            task.ask()
        tasks[0].failed(FailureKind.OVERLOADED)
        assert tasks[0].refusal.reason is Reason.PROVIDER_UNAVAILABLE
        assert not reported.of
        tasks[1].failed(FailureKind.OVERLOADED)
        assert reported.of == [("GaveUp", "p", Cause.DOWN)]
        tasks[2].failed(FailureKind.OVERLOADED)
        assert tasks[2].refusal.reason is Reason.PROVIDER_UNAVAILABLE

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "more", "tries", "parked"),
    [
        (FailureKind.OVERLOADED, {"http_status": 500}, 2, False),
        (FailureKind.CONNECTION, {}, 2, False),
        (FailureKind.OVERLOADED, {"http_status": 503}, 20, False),
        (FailureKind.CONNECTION, {"sent": False}, 2, True),
    ],
)
def test_what_fails_while_others_are_answered_is_not_always_the_tasks_own_fault(
    kind: FailureKind, more: dict[str, Any], tries: int, *, parked: bool
) -> None:
    """A busy provider is asked for longer, and one that cannot be reached is parked,
    also where others were answered before.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_backoff_s=0.02)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        for _ in range(tries):
            task.failed(kind, **more)
            other.ask()
            await other.answered.wait()
            g.answered(other.ref, 0.0)
            other.answered.clear()
            await task.answered.wait()
            assert isinstance(task.answers[-1], Grant)
        task.failed(kind, **more)
        if parked:
            assert task.parked.cause is Cause.DOWN
        else:
            assert task.refusal.reason is Reason.PROVIDER_UNAVAILABLE

    asyncio.run(scenario())


def test_a_task_that_fails_alone_takes_no_places_from_others() -> None:
    """What it meets first may be of all; met again while others are answered, it is its own."""

    async def scenario() -> None:
        g = governor(max_concurrent=16, max_backoff_s=0.02)
        odd, others = Task(g, "odd"), [Task(g, str(i)) for i in range(7)]
        for task in (odd, *others):
            task.ask()
        odd.answered.clear()
        odd.failed(FailureKind.OVERLOADED, http_status=500)
        assert g.figures()["p"]["concurrent"] == 4
        for other in others:
            g.answered(other.ref, 0.0)
        others[0].answered.clear()
        others[0].ask()
        await others[0].answered.wait()
        g.answered(others[0].ref, 0.0)
        await odd.answered.wait()
        assert (places := g.figures()["p"]["concurrent"]) == 5
        odd.answered.clear()
        odd.failed(FailureKind.OVERLOADED, http_status=500)
        assert g.figures()["p"]["concurrent"] == places
        await odd.answered.wait()
        odd.failed(FailureKind.OVERLOADED, http_status=503)
        assert g.figures()["p"]["concurrent"] < places

    asyncio.run(scenario())


def test_refusals_of_a_storm_count_against_no_other_failure() -> None:
    """While others are answered, a task ends for what it met more than ``max_retries`` times beside
    a busy provider, and is parked for a first refused key, also where it was parked before.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_backoff_s=0.02)
        task, other = Task(g, "a"), Task(g, "b")
        busy, odd = {"http_status": 429}, {"http_status": 500}
        task.ask()
        for more in (busy, busy, busy, odd, busy):
            task.failed(FailureKind.OVERLOADED, **more)
            other.answered.clear()
            other.ask()
            await other.answered.wait()
            g.answered(other.ref, 0.0)
            await task.answered.wait()
            assert isinstance(task.answers[-1], Grant)
        task.failed(FailureKind.AUTH)
        assert task.parked.cause is Cause.AUTH
        g.outages.close("p")
        task.ask()
        for _ in range(3):
            task.failed(FailureKind.OVERLOADED, **odd)
            await task.answered.wait()
        assert task.refusal.reason is Reason.PROVIDER_UNAVAILABLE

    asyncio.run(scenario())


def test_tries_that_never_reached_the_provider_count_against_no_request() -> None:
    """It came, answered others and went again:
    the one request that it took and broke off is not at fault for that.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        for _ in range(2):
            task.failed(FailureKind.CONNECTION, sent=False)
            await task.answered.wait()
        other.ask()
        g.answered(other.ref, 0.0)
        task.failed(FailureKind.CONNECTION)
        assert task.parked.cause is Cause.DOWN

    asyncio.run(scenario())


def test_answers_to_calls_of_better_days_do_not_make_an_outage_a_tasks_own_fault() -> None:
    """What went before the outage may still be answered;
    only what went after it shows that the provider is there.

    Then a task that has failed through all of it is at fault, also where it was parked in between.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_retries=0)
        early, late = Task(g, "a"), Task(g, "b")
        early.ask()
        late.ask()
        await asyncio.sleep(0.01)
        late.failed(FailureKind.CONNECTION)
        assert late.parked.cause is Cause.DOWN
        g.outages.close("p")
        late.ask()
        g.answered(early.ref, 0.0)
        late.failed(FailureKind.CONNECTION)
        assert late.parked.cause is Cause.DOWN
        g.outages.close("p")
        early.ask()
        g.answered(early.ref, 0.0)
        late.ask()
        late.failed(FailureKind.CONNECTION)
        assert late.refusal.reason is Reason.PROVIDER_UNAVAILABLE

    asyncio.run(scenario())


def test_a_call_that_fails_while_its_provider_is_parked_is_parked_with_it() -> None:
    """It was under way when others found out;
    that the provider answered others before ends no task.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        first, second = Task(g, "a"), Task(g, "b")
        second.ask()
        second.failed(FailureKind.BAD_ANSWER)
        await second.answered.wait()
        first.ask()
        g.answered(first.ref, 0.0)
        first.ask()
        first.failed(FailureKind.AUTH)
        second.failed(FailureKind.BAD_ANSWER)
        assert isinstance(second.parked, ParkDecision)

    asyncio.run(scenario())


@pytest.mark.parametrize(("wait_s", "parked"), [(50.0, False), (3600.0, True), (1e15, True)])
def test_a_provider_that_asks_for_a_long_wait_is_parked_and_tried_by_and_by(
    wait_s: float, *, parked: bool
) -> None:
    """Slots are not held for an hour;
    the wait is no longer than ``max_probe_s``, and ends with a try.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=wait_s)
        other.ask()
        if not parked:
            assert not other.answers
            return
        assert task.parked.cause is other.parked.cause is Cause.LIMITED
        assert f"{wait_s:.0f} s" in task.parked.message
        await asyncio.sleep(0.35)
        assert reported.of[-1] == ("HalfOpened", "p")
        other.ask()
        assert isinstance(other.answers[-1], Grant)

    asyncio.run(scenario())


def test_a_paused_provider_turns_calls_away() -> None:
    """Until it is unpaused; who waited is turned away too."""

    async def scenario() -> None:
        g = governor(max_concurrent=1)
        first, second = Task(g, "a"), Task(g, "b")
        first.ask()
        second.ask()
        g.outages.pause("p")
        assert second.parked.cause is Cause.PAUSED
        g.answered(first.ref, 0.0)
        g.outages.unpause("p")
        second.ask()
        assert isinstance(second.answers[-1], Grant)

    asyncio.run(scenario())


def test_what_cannot_be_counted_cannot_be_capped() -> None:
    """A model without a price is refused where a limit is active, and granted where none is."""

    async def scenario() -> None:
        g = governor(per_day=5.0)
        task = Task(g, "a")
        task.ask(None)
        assert task.refusal.reason is Reason.BAD_REQUEST
        free = Task(governor(), "a")
        free.ask(None)
        assert free.answers == [Grant(None, (500, 500))]

    asyncio.run(scenario())


def test_a_provider_without_its_key_is_never_called() -> None:
    """Its tasks wait, with the message that says what to set, until it is there and tried."""

    async def scenario() -> None:
        g = governor(missing={"p": "set the environment variable P_KEY"})
        task = Task(g, "a")
        task.ask()
        assert task.parked.cause is Cause.AUTH
        assert "P_KEY" in task.parked.message
        g.outages.retry("p")
        task.ask()
        assert isinstance(task.parked, ParkDecision)
        g.retune(g._config, {})
        g.outages.retry("p")
        task.ask()
        assert isinstance(task.answers[-1], Grant)

    asyncio.run(scenario())
