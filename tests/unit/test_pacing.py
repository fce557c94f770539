"""The pacing clock against simulated providers: hours of storms in milliseconds, with seeds."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from batchd.governor.pacing import Pace
from batchd.records import Failure, FailureKind, RateLimit


@dataclass(kw_only=True)
class Storm:
    """Agents that ask one provider without pause;
    the provider's limit is a token bucket over requests.
    """

    seed: int
    rps: float = 1e9
    burst: float = 1e9
    retry_after_s: float | None = 1.0
    headers: bool = False
    agents: int = 32
    #: On the way there, and back.
    way_s: tuple[float, float] = (0.001, 0.006)
    answer_s: tuple[float, float] = (0.0, 0.02)
    #: What a request needs at most, as a part of it what it then needs.
    tokens: tuple[int, int] = (100, 9000)
    pace: Pace = field(default_factory=Pace)
    granted: list[float] = field(default_factory=list)
    #: When a request went, and the tokens that it needed.
    spent: list[tuple[float, float]] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def run(self, calls: int) -> float:
        """Make so many calls; return the seconds until the last is answered."""
        self._random = random.Random(self.seed)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self._waiting: list[int] = []
        self._under_way, self._left, self._timer = 0, calls, math.inf
        self._level, self._at = self.burst, 0.0
        self.pace.configure(self.rpm, self.tpm, 1000, 0.0)
        for _ in range(min(self.agents, calls)):
            self._later(self._random.random() * 0.3, self._want)
        while self._queue:
            now, _, what, arguments = heapq.heappop(self._queue)
            what(now, *arguments)
        assert len(self.answered) == calls, "it came to a standstill"
        return self.answered[-1]

    rpm: int = 0
    tpm: int = 0

    def _later(self, at: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._queue, (at, next(self._count), what, arguments))

    def _want(self, now: float) -> None:
        if self._left:
            self._left -= 1
            self._waiting.append(self._random.randint(*self.tokens))
            self._pump(now)

    def _woken(self, now: float) -> None:
        self._timer = math.inf
        self._pump(now)

    def _pump(self, now: float) -> None:
        while self._waiting and self._under_way < self.pace.concurrent:
            ready = self.pace.ready_at(now, self._waiting[0])
            if ready > now:
                if ready < self._timer:
                    self._timer = ready
                    # Timers are late by a millisecond.
                    self._later(ready + self._random.random() * 0.001, self._woken)
                return
            tokens = self._waiting.pop(0)
            ticket = self.pace.granted(now, tokens)
            self._under_way += 1
            self.granted.append(now)
            self._later(now + self._random.uniform(*self.way_s), self._arrive, tokens, ticket)

    def _arrive(self, now: float, tokens: int, ticket: Any) -> None:
        self._level = min(self.burst, self._level + (now - self._at) * self.rps)
        self._at = now
        back = now + self._random.uniform(*self.way_s)
        passes = self._level >= 1
        self._level -= passes
        limit = RateLimit(
            of="requests",
            limit=self.burst,
            remaining=math.floor(self._level),
            reset_s=(self.burst - self._level) / self.rps,
        )
        heard = (limit,) if self.headers else ()
        if passes:
            back += self._random.uniform(*self.answer_s)
        self._later(back, self._outcome, passes, tokens, ticket, heard)

    def _outcome(
        self, now: float, passes: bool, tokens: int, ticket: Any, heard: tuple[RateLimit, ...]
    ) -> None:
        self.pace.heard(heard, now)
        if passes:
            used = tokens * self._random.random()
            self.answered.append(now)
            self.spent.append((ticket.at, used))
            self.pace.answered(ticket, now, used)
        else:
            self.refused.append(now)
            failure = Failure(
                kind=FailureKind.RATE_LIMITED, message="requests", retry_after_s=self.retry_after_s
            )
            self.pace.failed(ticket, now, failure, self._under_way)
            self._waiting.insert(0, tokens)
        self._under_way -= 1
        self._later(now, self._want) if passes else None
        self._pump(now)


SHAPES = [
    # requests a second, burst, Retry-After, agents
    (20, 20, 1.0, 32),
    (20, 20, None, 32),
    (20, 20, 1.0, 100),
    (5, 5, 1.0, 32),
    (5, 5, None, 32),
    (1, 100, 1.0, 100),
    (500 / 60, 500, 5.0, 100),
    (200, 200, 1.0, 200),
]


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(("rps", "burst", "wait", "agents"), SHAPES)
def test_a_storm_is_ridden_out_at_the_provider_s_pace(
    rps: float, burst: float, wait: float | None, agents: int, *, headers: bool
) -> None:
    """Every call is answered, at most one in twenty asks in vain,
    and the time is the provider's own.
    """
    for seed in range(4):
        calls = int(burst + max(100, min(2000, 60 * rps)))
        storm = Storm(
            seed=seed, rps=rps, burst=burst, retry_after_s=wait, agents=agents, headers=headers
        )
        took = storm.run(calls)
        assert len(storm.refused) <= max(0.05 * calls, 4)
        # Who reads headers keeps a little of the burst in hand.
        assert took <= 1.1 * (calls - burst * (0.8 if headers else 1)) / rps + 2


@pytest.mark.parametrize(("rps", "wait"), [(1, 1.0), (10, 1.0), (50, None), (50, 0.2)])
def test_without_any_burst_the_rate_still_comes_to_nine_tenths(
    rps: float, wait: float | None
) -> None:
    """A provider that refuses whatever comes a moment too soon is asked at its rate,
    after a while.
    """
    for seed in range(3):
        storm = Storm(seed=seed, rps=rps, burst=1, retry_after_s=wait, way_s=(0.002, 0.002))
        storm.run(40 * int(10 + 5 * rps))
        later = storm.answered[len(storm.answered) // 2 :]
        assert len(later) / (later[-1] - later[0]) >= 0.9 * rps
        assert len(storm.refused) <= 0.05 * len(storm.answered)


@pytest.mark.parametrize("rpm", [1, 7, 60, 500, 6000])
def test_no_minute_has_more_requests_than_configured(rpm: int) -> None:
    """In whatever minute one looks, and yet nearly all that is allowed goes."""
    storm = Storm(seed=rpm, rpm=rpm)
    storm.run(3 * rpm + 10)
    assert _most_in_a_minute([(at, 1) for at in storm.granted]) <= rpm
    assert storm.granted[-1] <= 60 * (3 * rpm + 10) / rpm * 1.05


@pytest.mark.parametrize("tpm", [20_000, 300_000])
def test_no_minute_has_more_tokens_than_configured(tpm: int) -> None:
    """Requests are counted at their most until their answers say what they needed."""
    for seed in range(4):
        storm = Storm(seed=seed, tpm=tpm, answer_s=(0.0, 90.0))
        took = storm.run(400)
        assert _most_in_a_minute(storm.spent) <= tpm
        if tpm == 20_000:  # otherwise the answers' time is what counts
            assert sum(used for _, used in storm.spent) >= 0.4 * tpm * took / 60


def test_a_request_above_the_whole_budget_goes_when_a_minute_had_nothing() -> None:
    """It would wait for ever otherwise; what it took is then waited for."""
    pace = Pace()
    pace.configure(0, 1000, 32, 0.0)
    pace.answered(pace.granted(0.0, 500), 0.5, 500)
    ready = pace.ready_at(1.0, 5000)
    assert ready == pytest.approx(60)
    pace.granted(ready, 5000)
    assert pace.ready_at(ready, 100) >= ready + 60


def test_where_nothing_is_known_nothing_is_held_back() -> None:
    """But for the first two seconds, in which a provider is not met by everybody at once."""
    pace = Pace()
    first = [pace.granted(0.0, 100) for _ in range(50) if pace.ready_at(0.0, 100) <= 0]
    assert len(first) == 8
    assert pace.ready_at(0.0, 100) <= 0.02
    for _ in range(10_000):
        assert pace.ready_at(2.0, 1e9) == 2.0
        pace.granted(2.0, 1e9)
    assert pace.figures() == {"rpm": 0, "tpm": 0, "concurrent": 1, "max_concurrent": 1}


def _refusal(
    wait: float | None = 1.0, says: str = "requests per min", kind: FailureKind | None = None
) -> Failure:
    kind = kind or FailureKind.RATE_LIMITED
    return Failure(kind=kind, message=says, retry_after_s=wait)


def _settled(rate: int = 600) -> Pace:
    """Return a clock that holds to a rate a minute."""
    pace = Pace()
    pace.configure(rate, 0, 32, 0.0)
    return pace


def test_one_epoch_cuts_once() -> None:
    """429s of requests that went before the cut only say what is known;
    those after it cut again.
    """
    pace = _settled()
    tickets = [pace.granted(n / 10, 10) for n in range(100)]
    pace.failed(tickets[-1], 10.0, _refusal(), 9)
    cut = pace.figures()["rpm"]
    assert 200 <= cut < 600
    for ticket in tickets[-5:-1]:
        pace.failed(ticket, 10.1, _refusal(), 9)
    assert 0.9 * cut <= pace.figures()["rpm"] <= cut
    assert pace.ready_at(10.1, 10) == pytest.approx(11.1)
    after = [pace.granted(11.1 + n, 10) for n in range(2)]
    pace.failed(after[1], 12.2, _refusal(), 9)
    assert pace.figures()["rpm"] < 0.9 * cut


def test_a_first_refusal_guesses_from_what_went_before() -> None:
    """Twenty at once and a second's wait: twenty a second.

    Late refusals of the same volley are taken off.
    """
    pace = Pace()
    pace.configure(0, 0, 32, 0.0)
    for _ in range(3):
        pace.ready_at(0.0, 1)
    pace.ready_at(3.0, 1)
    volley = [pace.granted(3.0, 10) for _ in range(32)]
    for ticket in volley[20:]:
        pace.failed(ticket, 3.01, _refusal(), 9)
    assert pace.figures()["rpm"] == pytest.approx(1200, rel=0.05)


def test_what_is_cut_is_won_back_and_never_above_the_configuration() -> None:
    """Additively, while requests wait for it."""
    pace = _settled()
    pace.failed(pace.granted(0.0, 10), 0.1, _refusal(), 1)
    now, rates = 0.0, []
    for _ in range(3000):
        now = max(now, pace.ready_at(now, 10))
        pace.answered(pace.granted(now, 10), now, 10)
        rates.append(pace.figures()["rpm"])
        now += 0.001
        pace.ready_at(now, 10)
    assert rates[0] < 310
    assert sorted(rates) == rates
    assert rates[-1] == pytest.approx(591, abs=1)


def test_where_no_request_gets_through_the_rate_is_not_to_blame() -> None:
    """The waits double up to a minute instead, also where Retry-After asks for less."""
    pace = _settled()
    for n in range(100):
        pace.granted(n / 10, 10)
    now, waits = 10.0, []
    rates = []
    for _ in range(12):
        pace.failed(pace.granted(now, 10), now, _refusal(0.1), 1)
        rates.append(pace.figures()["rpm"])
        ready = pace.ready_at(now, 10)
        waits.append(ready - now)
        now = ready
    assert waits[0] == pytest.approx(0.1)
    assert waits[-1] == pytest.approx(60)
    assert waits == sorted(waits)
    assert len(set(rates)) == 1


def test_a_429_that_names_tokens_cuts_tokens() -> None:
    """And leaves the rate of requests alone."""
    pace = _settled(6000)
    before = pace.figures()["rpm"]
    tickets = [pace.granted(n / 10, 100) for n in range(100)]
    pace.failed(tickets[-1], 10.0, _refusal(1.0, "Rate limit reached on tokens per min (TPM)"), 1)
    assert pace.figures()["rpm"] == before
    assert pace.figures()["tpm"] == pytest.approx(99 * 100 / 11 * 60, rel=0.05)
    assert pace.ready_at(11.0, 100) == 11.0
    pace.granted(11.0, 50_000)
    assert 11 < pace.ready_at(11.0, 100) <= 11 + 61


def _reported(remaining: float, *, window: bool = False) -> tuple[RateLimit]:
    reset = 30.0 if window else (100 - remaining) / 5
    return (RateLimit(of="requests", limit=100, remaining=remaining, reset_s=reset, window=window),)


def test_headers_matter_once_little_is_left() -> None:
    """Then the rate is what comes back, or in a window what is left of it;
    with plenty it is free again.
    """
    pace = Pace()
    pace.heard(_reported(60), 5.0)
    assert pace.figures()["rpm"] == 0
    pace.heard(_reported(10), 5.0)
    assert pace.figures()["rpm"] == pytest.approx(300)
    pace.heard(_reported(50), 6.0)
    assert pace.figures()["rpm"] == pytest.approx(300)
    pace.heard(_reported(90), 7.0)
    assert pace.figures()["rpm"] == 0
    pace.heard(_reported(15, window=True), 8.0)
    assert pace.figures()["rpm"] == pytest.approx(30)
    pace.heard(_reported(0, window=True), 9.0)
    assert pace.ready_at(9.0, 10) <= 9.0 + 60


@pytest.mark.parametrize(
    ("spares_cache", "tpm", "fresh"),
    [(True, 0, 1_000), (False, 0, 10_000), (True, 60_000, 10_000)],
)
def test_what_comes_from_the_cache_counts_as_its_provider_says(
    tpm: int, fresh: float, *, spares_cache: bool
) -> None:
    """Where its limit on tokens spares the cache, long conversations are not paced
    by all that they repeat; a configured one is of all.
    """
    limit = RateLimit(
        of="tokens", limit=60_000, remaining=0, reset_s=60.0, spares_cache=spares_cache
    )

    def wait_s(used: float, cached: float) -> float:
        pace = Pace()
        pace.configure(0, tpm, 32, 0.0)
        pace.heard([limit], 0.0)
        pace.answered(pace.granted(0.0, 10_000), 0.0, used, cached)
        return pace.ready_at(0.0, 55_000)

    assert wait_s(10_000, 9_000) == pytest.approx(wait_s(fresh, 0.0))
    assert wait_s(1_000, 0.0) < wait_s(10_000, 0.0)


def test_headers_do_not_overrule_the_configuration() -> None:
    """Who sets rpm knows what other clients need."""
    pace = _settled(120)
    pace.heard(_reported(10), 5.0)
    assert pace.figures()["rpm"] <= 120


def test_trouble_halves_the_concurrency_once_an_epoch_and_answers_win_it_back() -> None:
    """Down to one, and up to the configured number."""
    pace = Pace()
    pace.configure(0, 0, 32, 0.0)
    tickets = [pace.granted(3.0, 10) for _ in range(32)]
    overloaded = _refusal(None, "overloaded", FailureKind.OVERLOADED)
    for ticket in tickets:
        pace.failed(ticket, 3.5, overloaded, 32)
    assert pace.concurrent == 16
    assert pace.figures()["rpm"] == 0
    for n in range(1, 8):
        timeout = _refusal(None, "slow", FailureKind.TIMEOUT)
        pace.failed(pace.granted(3.0 + n, 10), 3.5 + n, timeout, pace.concurrent)
    assert pace.concurrent == 1
    sizes = []
    for n in range(2000):
        pace.answered(pace.granted(20.0 + n, 10), 20.5 + n, 10)
        sizes.append(pace.concurrent)
    assert sizes[15] >= 8, "an outage without answers says nothing about what is too many"
    assert sizes == sorted(sizes)
    assert sizes[-1] == 32


def test_a_running_clock_takes_new_limits() -> None:
    """Set, changed, and left to be found out again; what stays the same keeps what was learned."""
    pace = _settled(60)
    pace.granted(0.0, 10)
    assert pace.ready_at(0.0, 10) == pytest.approx(1.0)
    pace.configure(600, 0, 8, 0.0)
    assert pace.figures() == {
        "rpm": pytest.approx(591),
        "tpm": 0,
        "concurrent": 8,
        "max_concurrent": 8,
    }
    pace.failed(pace.granted(1.0, 10), 1.1, _refusal(), 1)
    cut = pace.figures()["rpm"]
    pace.configure(600, 0, 16, 2.0)
    assert pace.figures()["rpm"] == cut
    pace.configure(0, 0, 16, 3.0)
    assert pace.figures()["rpm"] == 0
    assert pace.ready_at(3.0, 10) == 3.0


def _most_in_a_minute(entries: list[tuple[float, float]]) -> float:
    """Return the most that any minute has, its beginning included and its end not."""
    entries = sorted(entries)
    most, total, first = 0.0, 0.0, 0
    for at, amount in entries:
        total += amount
        while entries[first][0] <= at - 60 + 1e-9:
            total -= entries[first][1]
            first += 1
        most = max(most, total)
    return most
