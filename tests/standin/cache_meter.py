"""Counts tokens as providers with a prompt cache do."""

from __future__ import annotations

import functools

import msgspec

from batchd import tokens
from batchd.records import Answer, Usage
from standin.simulated_request import SimulatedRequest, weigh

#: Prefixes remembered, then the cache is emptied: enough for a day of tests, about 20 MB.
_MAX_PREFIXES = 200_000
#: What every answer has without counting.
FIXED = Usage(calls=1, input_tokens=1000, output_tokens=50)


class Prompt(msgspec.Struct, frozen=True):
    """What a prompt came to."""

    tokens: int
    cached: int = 0
    written: int = 0
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
        #: The prefixes that a provider's rules have put into its cache.
        self._written: set[int] = set()

    def prompt(self, request: SimulatedRequest, *, cache: bool = True) -> Prompt:
        """Return what a request's prompt comes to.

        ``cache`` is whether it is in the cache from now on: what is refused does not come there.
        """
        if len(self._known) > _MAX_PREFIXES:
            self._known.clear()
            self._written.clear()
        total = _schemas(request.schemas) if request.schemas else 0
        key = hash((request.account, request.model, request.schemas))
        seen, met = 0, True
        places: dict[int, int] = {}
        for raw, segment in zip(request.raws, request.segments, strict=True):
            key = hash((key, bytes(raw)))
            known = self._known.get(key)
            total = total + segment.weight() if known is None else known
            met = met and known is not None
            seen = total if met else seen
            places[key] = total
        if cache:
            self._known |= places
        rules = request.cache
        if rules is None:
            return Prompt(total, seen)
        sizes = [*places.values()]
        kept = [hash((rules.scope, place)) for place in places]
        marks = [at for at in rules.breakpoints if sizes[at] >= rules.minimum]
        read = written = 0
        for mark in marks:
            first = max(0, mark + 1 - rules.lookback) if rules.lookback else 0
            found = (sizes[at] for at in range(first, mark + 1) if kept[at] in self._written)
            read = max(read, *found, 0)
        for mark in marks:
            written = max(written, sizes[mark] - read)
            if cache:
                self._written.add(kept[mark])
        seen = seen if seen >= rules.minimum else 0
        return Prompt(total, read, written if rules.billed else 0, seen)

    def usage(self, request: SimulatedRequest, answer: Answer) -> tuple[Usage, Prompt]:
        """Return the usage of an answer, and what its prompt came to.

        Output that was recorded counts as recorded.
        """
        prompt = self.prompt(request)
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
