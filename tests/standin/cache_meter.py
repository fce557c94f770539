"""Counts tokens as providers with a prompt cache do."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from batchd import tokens
from batchd.records import Answer, Usage
from standin.simulated_request import CacheRules, SimulatedRequest, weigh

#: Prefixes remembered, then the cache is emptied: enough for a day of tests, about 20 MB.
_MAX_PREFIXES = 200_000
#: What every answer has without counting.
FIXED = Usage(calls=1, input_tokens=1000, output_tokens=50)


class Prompt(msgspec.Struct, frozen=True):
    """What a prompt came to."""

    tokens: int
    cached: int = 0
    written: int = 0
    #: What of that was written for long.
    written_long: int = 0
    #: What earlier requests of the account and model began with as well,
    #: where it is long enough to be cached.
    seen: int = 0


class CacheMeter:
    """Counts each segment once:
    a request's tokens are those of its longest known prefix and what follows.

    Without rules of a provider's, what was counted before is what it would read from its cache.
    """

    def __init__(self) -> None:
        #: The chained hash of a prefix of segments, and the tokens of that prefix.
        self._known: dict[int, int] = {}
        #: The hashes of the prefixes that a provider's rules have put into its cache,
        #: and until when, for how long.
        self._written: dict[int, tuple[float, int]] = {}

    def forget(self) -> None:
        """Forget what is in the caches."""
        self._known.clear()
        self._written.clear()

    def prompt(self, request: SimulatedRequest, now: float, *, cache: bool = True) -> Prompt:
        """Return what a request's prompt comes to at a time, in seconds.

        ``cache`` is whether it is in the cache from now on: what is refused does not come there.
        """
        if request.cache is not None:
            return self._by_rules(request, request.cache, now, cache=cache)
        total = _schemas(request.schemas) if request.schemas else 0
        key, cached, hit = hash((request.model, request.schemas)), 0, True
        self._trim()
        for raw, segment in zip(request.raws, request.segments, strict=True):
            key = hash((key, bytes(raw)))
            known = self._known.get(key)
            hit = hit and known is not None
            total = known if known is not None else total + segment.weight()
            if cache:
                self._known[key] = total
            if hit:
                cached = total
        return Prompt(total, cached)

    def _by_rules(
        self, request: SimulatedRequest, rules: CacheRules, now: float, *, cache: bool
    ) -> Prompt:
        total, key, seen, met = 0, hash((request.account, request.model)), 0, True
        if request.schemas:
            key, total = hash((key, request.schemas)), _schemas(request.schemas)
        self._trim()
        places: list[tuple[int, int]] = []
        for raw, segment in zip(request.raws, request.segments, strict=True):
            key = hash((key, bytes(raw)))
            known = self._known.get(key)
            total = self._known[key] = known if known is not None else total + segment.weight()
            met = met and known is not None
            seen = total if met else seen
            places.append((hash((rules.scope, key)), total))
        marks = [(at, ttl) for at, ttl in rules.breakpoints if places[at][1] >= rules.minimum]
        read_at = self._read(places, marks, rules, now)
        read = places[read_at][1] if read_at >= 0 else 0
        if cache and read_at >= 0:
            # What is read stays as long again as it was written for.
            place = places[read_at][0]
            self._keep(place, now, self._written[place][1])
        written, long = 0, 0
        for at, ttl in marks:
            place, size = places[at]
            if cache:
                self._keep(place, now, ttl)
            if size > read + written:
                fresh = size - read - written
                written += fresh
                long += fresh if ttl >= rules.long_s else 0
        if not rules.billed:
            written = long = 0
        return Prompt(total, read, written, long, seen if seen >= rules.minimum else 0)

    def _read(
        self,
        places: Sequence[tuple[int, int]],
        marks: Sequence[tuple[int, int]],
        rules: CacheRules,
        now: float,
    ) -> int:
        """Return the last place up to which the prompt is read from the cache; -1: nowhere."""
        best = -1
        for mark, _ in marks:
            first = max(0, mark + 1 - rules.lookback) if rules.lookback else 0
            for at in range(mark, max(first, best + 1) - 1, -1):
                if self._written.get(places[at][0], (0.0, 0))[0] > now:
                    best = at
                    break
        return best

    def _keep(self, place: int, now: float, ttl: int) -> None:
        until, for_s = self._written.get(place, (0.0, 0))
        self._written[place] = (max(until, now + ttl), max(for_s, ttl) if until > now else ttl)

    def _trim(self) -> None:
        if len(self._known) > _MAX_PREFIXES:
            self.forget()

    def usage(self, request: SimulatedRequest, answer: Answer, now: float) -> tuple[Usage, Prompt]:
        """Return the usage of an answer, and what its prompt came to.

        Output that was recorded counts as recorded.
        """
        prompt = self.prompt(request, now)
        thought = answer.usage.reasoning_tokens or weigh(answer.reasoning)
        said = answer.usage.output_tokens or _output(answer) + thought
        usage = Usage(
            calls=1,
            input_tokens=prompt.tokens,
            cached_input_tokens=prompt.cached,
            cache_write_tokens=prompt.written,
            cache_reported_tokens=prompt.tokens,
            output_tokens=said,
            reasoning_tokens=thought,
        )
        return usage, prompt


def _output(answer: Answer) -> int:
    calls = (
        weigh(c.name) + weigh(c.arguments) + tokens.TOOL_CALL_TOKENS for c in answer.tool_calls
    )
    return weigh(answer.content) + sum(calls) + 1


@functools.lru_cache(64)
def _schemas(tools: bytes) -> int:
    return tokens.count(tools.decode())
