"""When a provider is parked, and what ends that: each wait has one owner, and goes with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from batchd.governor import Governor, Grant, ParkDecision, Refusal, WantedCall
from batchd.records import Cause, Failure, FailureKind, Reason, Scope
from tests.unit.test_governor import Reported, Task, governor

#: Longer than any test takes.
_DAY_S = 86400.0


def _long(task: Task) -> None:
    task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=_DAY_S)


def test_an_answer_to_an_earlier_call_proves_nothing() -> None:
    """A call that went before the provider was parked neither lets the others go,
    nor leaves them in their slots.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_probe_s=_DAY_S)
        early, refused, late = (Task(g, name) for name in "abc")
        early.ask()
        refused.ask()
        _long(refused)
        g.answered(early.ref, 0.0)
        assert reported.of == [("Parked", "p", Cause.LIMITED)]
        late.ask()
        assert isinstance(late.parked, ParkDecision)
        g.outages.retry("p")
        late.ask()
        assert isinstance(late.answers[-1], Grant)
        g.answered(late.ref, 0.0)
        assert reported.of[-1] == ("Closed", "p")

    asyncio.run(scenario())


def test_a_failure_of_an_earlier_call_ends_no_try() -> None:
    """While one call tries a parked provider, what fails
    of the calls before is no news, and doubles no wait.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_probe_s=_DAY_S)
        early, refused, trying = (Task(g, name) for name in "abc")
        for task in (early, refused):
            task.ask()
        refused.failed(FailureKind.AUTH)
        g.outages.retry("p")
        trying.ask()
        early.failed(FailureKind.AUTH)
        assert isinstance(early.parked, ParkDecision)
        g.answered(trying.ref, 0.0)
        assert [what for what, *_ in reported.of] == ["Parked", "HalfOpened", "Closed"]

    asyncio.run(scenario())


def test_a_long_wait_ends_with_the_breaker() -> None:
    """Once one call is answered, no pause and no rate is left of it:
    the others go at once, as many as before.
    """

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


def test_resume_lifts_a_wait_that_parks_no_task() -> None:
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
        assert g.figures()["p"]["paused_s"] == 0

    asyncio.run(scenario())


def _of(task: Task, model: str) -> WantedCall:
    return replace(task.call(), model=model)


def _ask(g: Governor, task: Task, model: str) -> None:
    g.ask(_of(task, model), task._answered)


def _fail(g: Governor, task: Task, model: str, kind: FailureKind, **more: Any) -> None:
    g.failed(_of(task, model), Failure(kind=kind, message="no", **more), task._answered)


def test_a_refusal_that_names_a_model_parks_that_model_alone() -> None:
    """Calls to the others go on; who asks for the one is turned away,
    until one call to it is answered.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_probe_s=_DAY_S)
        one, other = Task(g, "a"), Task(g, "b")
        _ask(g, one, "p/x")
        _fail(g, one, "p/x", FailureKind.AUTH, of_model=True)
        assert (one.parked.scope, one.parked.name) == (Scope.MODEL, "p/x")
        _ask(g, other, "p/y")
        assert isinstance(other.answers[-1], Grant)
        g.answered(other.ref, 0.0)
        _ask(g, one, "p/x")
        assert isinstance(one.parked, ParkDecision)
        g.outages.retry("p/x")
        _ask(g, one, "p/x")
        g.answered(one.ref, 0.0)
        assert reported.of == [
            ("Parked", "p/x", Cause.AUTH),
            ("HalfOpened", "p/x"),
            ("Closed", "p/x"),
        ]

    asyncio.run(scenario())


def test_a_refusal_while_others_are_served_is_the_models_own() -> None:
    """It names nothing; but a call to another model that went later was answered."""

    async def scenario() -> None:
        g = governor(max_concurrent=9)
        one, other = Task(g, "a"), Task(g, "b")
        _ask(g, one, "p/x")
        await asyncio.sleep(0.001)
        _ask(g, other, "p/y")
        g.answered(other.ref, 0.0)
        _fail(g, one, "p/x", FailureKind.QUOTA)
        assert (one.parked.scope, one.parked.name) == (Scope.MODEL, "p/x")

    asyncio.run(scenario())


def test_a_provider_that_answers_another_model_was_not_at_fault() -> None:
    """All go on; a model that it refused before, and refuses again,
    is parked alone, without news of the provider.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_probe_s=_DAY_S)
        x, y, z = (Task(g, name) for name in "xyz")
        for task in (x, y):
            _ask(g, task, f"p/{task.ref.task}")
        for task in (x, y):
            _fail(g, task, f"p/{task.ref.task}", FailureKind.AUTH)
        assert reported.of == [("Parked", "p", Cause.AUTH)]
        g.outages.retry("p")
        _ask(g, z, "p/z")
        reported.of.clear()
        g.answered(z.ref, 0.0)
        assert reported.of == [("Closed", "p")]
        for task in (x, y):
            _ask(g, task, f"p/{task.ref.task}")
            assert isinstance(task.answers[-1], Grant)
        _fail(g, x, "p/x", FailureKind.AUTH)
        g.answered(y.ref, 0.0)
        assert reported.of[1:] == [("Parked", "p/x", Cause.AUTH)]
        # What is known of it from before counts no more, once it was answered.
        _ask(g, y, "p/y")
        _fail(g, y, "p/y", FailureKind.AUTH)
        assert (y.parked.scope, y.parked.name) == (Scope.PROVIDER, "p")

    asyncio.run(scenario())


def test_a_task_that_alone_is_refused_ends_in_the_end() -> None:
    """Its model answers others each time that it was parked for it:
    after ``max_retries`` the fault is its own.
    """

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_retries=2, max_probe_s=_DAY_S)
        poison, other = Task(g, "a"), Task(g, "b")
        for _ in range(2):
            poison.ask()
            poison.failed(FailureKind.AUTH)
            assert isinstance(poison.parked, ParkDecision)
            g.outages.retry("p")
            other.ask()
            g.answered(other.ref, 0.0)
        poison.ask()
        poison.failed(FailureKind.AUTH)
        assert poison.refusal.reason is Reason.AUTH
        other.ask()
        assert isinstance(other.answers[-1], Grant)

    asyncio.run(scenario())


def test_where_nothing_is_parked_a_refused_model_ends_its_own_tasks_alone() -> None:
    """As in `run`: the others go on."""

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_parked_s=0)
        one, other = Task(g, "a"), Task(g, "b")
        _ask(g, one, "p/x")
        _fail(g, one, "p/x", FailureKind.AUTH, of_model=True)
        assert one.refusal.reason is Reason.AUTH
        assert reported.of == [("GaveUp", "p/x", Cause.AUTH)]
        _ask(g, other, "p/y")
        assert isinstance(other.answers[-1], Grant)

    asyncio.run(scenario())


def test_where_only_parked_models_are_left_one_of_them_tries_their_provider() -> None:
    """A provider that is parked as well waits for no other task."""

    async def scenario() -> None:
        g = governor(max_concurrent=9, max_retries=0, max_probe_s=_DAY_S)
        one, other = Task(g, "a"), Task(g, "b")
        _ask(g, one, "p/x")
        _fail(g, one, "p/x", FailureKind.AUTH, of_model=True)
        _ask(g, other, "p/y")
        _fail(g, other, "p/y", FailureKind.CONNECTION)
        g.outages.retry("p")
        _ask(g, one, "p/x")
        assert isinstance(one.answers[-1], Grant)
        g.answered(one.ref, 0.0)
        for task, model in ((one, "p/x"), (other, "p/y")):
            _ask(g, task, model)
            assert isinstance(task.answers[-1], Grant)

    asyncio.run(scenario())


def test_tries_of_many_tasks_count_together_where_none_is_served() -> None:
    """Tasks of one model hold all slots, each has made few of its tries,
    and they give them back all the same.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=1, max_retries=4, probe_s=_DAY_S)
        tasks = [Task(g, name) for name in "abc"]
        for task in tasks:
            task.ask()
        turns = 0
        while not reported.of:
            (task,) = [t for t in tasks if t.answers and t.answered.is_set()]
            task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=0.001)
            turns += 1
            assert turns < 9
            async with asyncio.timeout(30):
                await asyncio.wait(
                    [asyncio.ensure_future(t.answered.wait()) for t in tasks],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        assert (turns, reported.of) == (5, [("Parked", "p", Cause.DOWN)])

    asyncio.run(scenario())


def test_a_silent_model_is_parked_alone_while_others_are_served() -> None:
    """Its tasks' tries count together: one after another,
    each silent for all of its time, they held all slots for minutes.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=1, max_retries=4, probe_s=_DAY_S)
        silent, served = [Task(g, name) for name in "abc"], Task(g, "d")
        for task in silent:
            _ask(g, task, "p/silent")
        _ask(g, served, "p/m")
        turns = 0
        while not reported.of:
            async with asyncio.timeout(30):
                waits = [asyncio.ensure_future(t.answered.wait()) for t in (*silent, served)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if served.answered.is_set():
                served.answered.clear()
                g.answered(served.ref, 0.0)
                _ask(g, served, "p/m")
            for task in silent:
                if task.answered.is_set():
                    task.answered.clear()
                    _fail(g, task, "p/silent", FailureKind.TIMEOUT, sent=True)
                    turns += 1
            assert turns < 9
        assert reported.of == [("Parked", "p/silent", Cause.DOWN)]

    asyncio.run(scenario())


def test_a_task_whose_request_alone_is_met_with_silence_ends() -> None:
    """Where one task of a model is all that fails, it is its request's fault:
    nothing else of it is held.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_retries=2, first_backoff_s=0.001)
        task, other = Task(g, "a"), Task(g, "b")
        _ask(g, task, "p/silent")
        while not (task.answers and isinstance(task.answers[-1], Refusal)):
            async with asyncio.timeout(30):
                await task.answered.wait()
            task.answered.clear()
            _fail(g, task, "p/silent", FailureKind.TIMEOUT, sent=True)
            _ask(g, other, "p/m")
            g.answered(other.ref, 0.0)
        assert (task.refusal.reason, reported.of) == (Reason.PROVIDER_UNAVAILABLE, [])

    asyncio.run(scenario())


def test_refusals_of_one_moment_are_one_try() -> None:
    """As in the first seconds of a storm:
    as many calls as may go meet a limit together, and nothing is parked.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(reported, max_concurrent=9, max_retries=4)
        tasks = [Task(g, str(n)) for n in range(9)]
        for task in tasks:
            task.ask()
        for task in tasks:
            task.failed(FailureKind.RATE_LIMITED, http_status=429, retry_after_s=0.001)
        assert reported.of == []

    asyncio.run(scenario())


def test_only_time_in_which_it_was_tried_in_vain_ends_the_wait() -> None:
    """From each opening to the try after it, where that failed:
    what no call has asked is not given up.
    """

    async def scenario() -> None:
        reported = Reported()
        g = governor(
            reported,
            max_concurrent=9,
            max_retries=0,
            probe_s=0.1,
            max_probe_s=9.0,
            max_parked_s=0.25,
        )
        task = Task(g, "a")
        task.ask()
        task.failed(FailureKind.CONNECTION)
        async with asyncio.timeout(30):
            while ("HalfOpened", "p") not in reported.of:  # noqa: ASYNC110 (the loop's own timer)
                await asyncio.sleep(0.01)
        # No call goes for long: that is no try.
        await asyncio.sleep(0.5)
        assert g.outages.tried_s("p") == 0
        task.ask()
        task.failed(FailureKind.CONNECTION)
        assert 0.1 <= g.outages.tried_s("p") < 0.25
        assert isinstance(task.parked, ParkDecision)
        # The last try is made when patience ends, and not after twice the wait.
        async with asyncio.timeout(30):
            while reported.of.count(("HalfOpened", "p")) < 2:  # noqa: ASYNC110 (the same)
                await asyncio.sleep(0.01)
        task.ask()
        task.failed(FailureKind.CONNECTION)
        assert task.refusal.reason is Reason.PROVIDER_UNAVAILABLE
        assert reported.of[-1] == ("GaveUp", "p", Cause.DOWN)

    asyncio.run(scenario())
