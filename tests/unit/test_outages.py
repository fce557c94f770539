"""When a provider is parked, and what ends that: each wait has one owner, and goes with it."""

from __future__ import annotations

import asyncio

from batchd.governor import Grant, Park
from batchd.records import Cause, Failure, FailureKind
from tests.unit.test_governor import Task, Told, governor

#: Longer than any test takes.
_DAY_S = 86400.0


def _long(task: Task) -> None:
    task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=_DAY_S)


def test_an_answer_to_an_earlier_call_proves_nothing() -> None:
    """A call that went before the provider was parked neither lets the others go, nor leaves them in their slots."""

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_probe_s=_DAY_S)
        told = Told(g)
        early, refused, late = (Task(g, name) for name in "abc")
        early.ask()
        refused.ask()
        _long(refused)
        g.answered(early.ref, 0.0)
        assert told.of == [("parked", "p", Cause.LIMITED)]
        late.ask()
        assert isinstance(late.parked, Park)
        g.outages.retry("p")
        late.ask()
        assert isinstance(late.answers[-1], Grant)
        g.answered(late.ref, 0.0)
        assert told.of[-1] == ("closed", "p")

    asyncio.run(scenario())


def test_a_failure_of_an_earlier_call_ends_no_try() -> None:
    """While one call tries a parked provider, what fails of the calls before is no news, and doubles no wait."""

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_probe_s=_DAY_S)
        told = Told(g)
        early, refused, trying = (Task(g, name) for name in "abc")
        for task in (early, refused):
            task.ask()
        refused.failed(FailureKind.AUTH)
        g.outages.retry("p")
        trying.ask()
        early.failed(FailureKind.AUTH)
        assert isinstance(early.parked, Park)
        g.answered(trying.ref, 0.0)
        assert [what for what, *_ in told.of] == ["parked", "half_opened", "closed"]

    asyncio.run(scenario())


def test_a_long_wait_ends_with_the_breaker() -> None:
    """Once one call is answered, no pause and no rate is left of it: the others go at once, as many as before."""

    async def scenario() -> None:
        g = governor(max_concurrent=20, max_probe_s=_DAY_S)
        tasks = [Task(g, str(n)) for n in range(12)]
        tasks[0].ask()
        _long(tasks[0])
        g.outages.retry("p")
        tasks[1].ask()
        g.answered(tasks[1].ref, 0.0)
        for task in tasks[2:]:
            task.ask()
        async with asyncio.timeout(30):
            for task in tasks[2:]:
                await task.answered.wait()
        assert all(isinstance(task.answers[-1], Grant) for task in tasks[2:])

    asyncio.run(scenario())


def test_a_call_that_is_not_made_again_parks_its_provider_too() -> None:
    """Its task was paused, or had no time left: what its call met holds for all others."""

    async def scenario() -> None:
        for kind, cause in (
            (FailureKind.AUTH, Cause.AUTH),
            (FailureKind.RATE_LIMITED, Cause.LIMITED),
        ):
            g = governor(max_concurrent=9, max_probe_s=_DAY_S)
            task, other = Task(g, "a"), Task(g, "b")
            task.ask()
            g.released(task.ref, Failure(kind=kind, message="no", retry_after_s=_DAY_S))
            other.ask()
            assert other.parked.cause is cause

    asyncio.run(scenario())


def test_resume_lifts_a_wait_that_parks_nobody() -> None:
    """A provider that asked for half a minute is asked at once where somebody says so."""

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        task, other = Task(g, "a"), Task(g, "b")
        task.ask()
        task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=30.0)
        other.ask()
        assert not other.answers
        g.outages.retry("p")
        assert isinstance(task.answers[-1], Grant)
        assert g.told()["p"]["paused_s"] == 0

    asyncio.run(scenario())
