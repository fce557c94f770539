"""``check --live``: one token of each model in use, by the governor's leave,
over the way that the calls of tasks go.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from batchd import terms
from batchd.agent import answers
from batchd.agent.belief import believed
from batchd.agent.charges import charge
from batchd.config import Config
from batchd.control import CheckLine
from batchd.control.check import LiveCall
from batchd.daemon import tuning
from batchd.errors import BatchdError
from batchd.events import CallAnswered, CallStarted
from batchd.governor import Answer as Answering
from batchd.governor import Governor, Grant, ParkDecision, Refusal, WantedCall
from batchd.llm import ModelClient, ModelRequest
from batchd.llm.dialects import DIALECTS
from batchd.masking import Masker
from batchd.pricing import Prices
from batchd.records import (
    STANDARD,
    Answer,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Purpose,
    Ref,
    dollars,
)

_ASKED = (Message("user", "Say ok."),)
#: What that comes to, with what each dialect puts around it;
#: not counted, for a tokenizer takes much memory.
_INPUT_TOKENS = 32
#: What a permit, and then an answer, may take (seconds).
_TURN_S = 60.0
_ANSWER_S = 120.0
#: So chat completions refuse an answer whose thinking alone is longer than what was asked for:
#: the model was at work.
_NO_ROOM = re.compile(r"max_tokens or model output limit was reached", re.IGNORECASE)
_NETWORK = "check the network and the base_url in {place}"
_LATER = "it passes by itself: tasks wait for it, and try again"
#: What to do about a call that failed.
_FIXES: Mapping[FailureKind, str] = {
    FailureKind.AUTH: "put a valid key where {place} says",
    FailureKind.FORBIDDEN: "have its account allow this key the model, or put another key where {place} says",
    FailureKind.QUOTA: "see to the account's money and limits",
    FailureKind.CONNECTION: _NETWORK,
    FailureKind.TIMEOUT: _NETWORK,
    FailureKind.RATE_LIMITED: _LATER,
    FailureKind.OVERLOADED: _LATER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCallContext:
    """What a live call needs of who makes it."""

    config: Config
    prices: Prices
    governor: Governor
    #: What a model, by its name, is known to refuse.
    refused: Callable[[str], Collection[str]]
    #: Takes what models were seen to refuse.
    learned: Callable[[Mapping[str, Iterable[str]]], None]


async def alone(
    config: Config, models: Iterable[str], booked: Callable[[int], float]
) -> tuple[CheckLine, ...]:
    """Ask where no daemon runs; ``booked``: what the store has for a day. See ``ask``."""
    missing = tuning.endpoints(config)[1]
    governor = Governor(config, missing, lambda _: None, booked=booked)
    books = LiveCallContext(
        config=config,
        prices=Prices(config.models),
        governor=governor,
        refused=lambda _: (),
        learned=lambda _: None,
    )
    return await ask(books, models)


async def ask(books: LiveCallContext, models: Iterable[str]) -> tuple[CheckLine, ...]:
    """Ask each model; return a line for each, and what all of it cost.

    Not twice at a time with one governor.
    """
    names = [*dict.fromkeys(models)]
    client = ModelClient(tuning.endpoints(books.config)[0])
    client.know({name: books.refused(name) for name in names})
    masker = Masker(books.config.hidden())
    try:
        found = await asyncio.gather(
            *(
                _Sounding(books, client, masker, Ref("", str(number)), name).line()
                for number, name in enumerate(names)
            )
        )
    finally:
        await client.aclose()
    books.learned(client.lessons())
    books.governor.heard(client.limits())
    return (*found, _sum([line.live for line in found if line.live]))


def _sum(asked: list[LiveCall]) -> CheckLine:
    """Return what all of them cost, and of how many that is not known."""
    known = sum(each.cost_usd for each in asked if each.cost_usd is not None)
    unknown = sum(each.cost_usd is None for each in asked)
    calls = f"{len(asked)} call{'s' * (len(asked) != 1)}"
    said = f"this check made {calls}"
    if unknown < len(asked):
        said += f", for {dollars(known)}"
    if unknown:
        said += f"; what {unknown} of them cost is not known"
    return CheckLine("note" if unknown else "ok", "live", said)


@dataclass(slots=True, eq=False)
class _Sounding:
    """One model, asked once;
    again only where a part of the request is refused that can be spared.
    """

    _books: LiveCallContext
    _client: ModelClient
    _masker: Masker
    #: Of no batch that there can be: no budget but the day's is drawn on.
    _ref: Ref
    _name: str

    async def line(self) -> CheckLine:
        """Ask, and return what came of it. Raises nothing for what a provider does."""
        config, governor = self._books.config, self._books.governor
        try:
            setup = terms.setup(self._name, config, self._books.prices)
        except BatchdError as error:
            return self._not_asked(str(error))
        setup = replace(setup, service_tier=config.tier(self._name)[0])
        try:
            return await self._asked(setup)
        finally:
            governor.close_task(self._ref)  # a call that was broken off counts as perhaps paid
            governor.forget(self._ref)

    async def _asked(self, setup: ModelSetup) -> CheckLine:
        governor, refused = self._books.governor, list[str]()
        request = ModelRequest(
            messages=_ASKED, tools=(), max_output_tokens=DIALECTS[setup.api].least_output
        )
        call = WantedCall(
            ref=self._ref,
            model=setup.name,
            price=setup.price,
            input_tokens=_INPUT_TOKENS,
            max_output_tokens=request.max_output_tokens,
            tier=setup.service_tier,
            timeout_s=_ANSWER_S,
        )
        decision = await self._decided(partial(governor.ask, call))
        while isinstance(decision, Grant):
            started = _started(call, decision)
            tier = None if decision.tier == STANDARD else decision.tier
            begun = time.monotonic()
            outcome = await self._client.call(setup, replace(request, service_tier=tier), _ANSWER_S)
            seconds = time.monotonic() - begun
            outcome = answers.masked(outcome, self._masker)
            if isinstance(outcome, Answer):
                return self._answered(outcome, started, setup, seconds, refused)
            if not outcome.kind.repairable:
                return self._failed(outcome, started, seconds, refused)
            refused.append(outcome.refuses or outcome.kind)
            request = answers.repaired(request, outcome)
            decision = await self._decided(partial(governor.failed, call, outcome))
        if isinstance(decision, Refusal):
            return self._not_asked(decision.error.message)
        if isinstance(decision, ParkDecision):
            return self._not_asked(decision.message)
        return self._not_asked(f"its turn did not come within {_TURN_S:g} s")

    async def _decided(
        self, asks: Callable[[Answering], None]
    ) -> Grant | Refusal | ParkDecision | None:
        """Return what the governor says; None: nothing in time."""
        answer: asyncio.Future[Grant | Refusal | ParkDecision] = (
            asyncio.get_running_loop().create_future()
        )

        def decided(decision: Grant | Refusal | ParkDecision) -> None:
            if not answer.done():
                answer.set_result(decision)

        asks(decided)
        try:
            async with asyncio.timeout(_TURN_S):
                return await answer
        except TimeoutError:
            return None

    def _answered(
        self,
        answer: Answer,
        call: CallStarted,
        setup: ModelSetup,
        seconds: float,
        refused: list[str],
    ) -> CheckLine:
        answer, disbelieved = believed(answer, call, setup)
        booked = charge(answer, call, setup, believed=disbelieved is None)
        event = CallAnswered(
            at=time.time(),
            purpose=call.purpose,
            answer=answer,
            disbelieved=disbelieved,
            tier=booked.tier,
            cost=booked.cost,
            sent_at=call.at,
        )
        cost, usage = event.paid(setup.price), answer.usage
        self._books.governor.answered(
            self._ref,
            cost.total if cost else 0.0,
            usage,
            tier=booked.tier,
            believed=disbelieved is None,
        )
        asked = LiveCall(
            model=self._name,
            seconds=seconds,
            cost_usd=cost.total if cost else None,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            refused=tuple(refused),
        )
        paid = "price unknown" if cost is None else dollars(cost.total)
        said = f"{self._name} answered in {seconds:.1f} s: {usage.input_tokens:,} tokens in, "
        said += f"{usage.output_tokens:,} out, {paid}{_spared(refused)}"
        return CheckLine("ok", "live", said, booked.doubt, asked)

    def _failed(
        self, failure: Failure, call: CallStarted, seconds: float, refused: list[str]
    ) -> CheckLine:
        governor = self._books.governor
        asked = LiveCall(model=self._name, seconds=seconds, refused=tuple(refused))
        if _NO_ROOM.search(failure.message):
            governor.close_task(self._ref)
            said = f"{self._name} was at work for {seconds:.1f} s; what a token of it cost, it does not say"
            return CheckLine("ok", "live", said, live=asked)
        governor.released(self._ref, failure)
        said = f"{failure.message}, after {seconds:.1f} s{_spared(refused)}"
        if not failure.unsettled:
            asked = LiveCall(
                model=self._name, seconds=seconds, cost_usd=0.0, refused=tuple(refused)
            )
        elif call.reserved_usd is None:
            said += "; it may be billed all the same, price unknown"
        else:
            said += f"; it may be billed all the same, {dollars(call.reserved_usd)} at most"
        place = f"[providers.{self._name.partition('/')[0]}]"
        fix = _FIXES.get(failure.kind, "check the model's name, and api and base_url in {place}")
        if failure.kind is FailureKind.AUTH and not self._has_key():
            fix = "set api_key_env or api_key_file in {place}"
        return CheckLine("failed", "live", said, fix.format(place=place), asked)

    def _has_key(self) -> bool:
        """Return whether a key is named for its provider."""
        provider = self._books.config.providers.get(self._name.partition("/")[0])
        return provider is not None and bool(provider.api_key_env or provider.api_key_file)

    def _not_asked(self, why: str) -> CheckLine:
        return CheckLine("failed", "live", f"{self._name} was not asked: {why}")


def _started(call: WantedCall, grant: Grant) -> CallStarted:
    return CallStarted(
        at=time.time(),
        purpose=Purpose.AGENT,
        input_tokens=call.input_tokens,
        max_output_tokens=call.max_output_tokens,
        reserved_usd=grant.reserved_usd,
        reserved_tokens=grant.reserved_tokens,
        tier=grant.tier,
    )


def _spared(refused: list[str]) -> str:
    return f"; it refuses {', '.join(refused)}, and is asked without" if refused else ""
