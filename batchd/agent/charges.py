"""What a call is booked at: the usage that is believed, the tier, and the price."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from batchd.events import (
    CallStarted,
)
from batchd.records import (
    STANDARD,
    Answer,
    Cost,
    ModelSetup,
    Price,
    Usage,
    highest_cost,
)


def believed(answer: Answer, call: CallStarted, setup: ModelSetup) -> tuple[Answer, Usage | None]:
    """Return an answer with a usage that its call can have,
    and the provider's where that is another.

    In its place stands what was set aside for the call:
    more than that no one has reason to book, and less may be wrong.
    """
    usage = answer.usage
    if not usage.beyond(call.input_tokens, call.max_output_tokens, setup.context_window):
        return answer, None
    given, asked = call.reserved_tokens or (call.input_tokens, call.max_output_tokens)
    most = Usage(input_tokens=given, output_tokens=asked)
    if setup.price is not None:
        most = setup.price.most_expensive(given, asked)
    return replace(answer, usage=replace(most, calls=1, estimated=True)), usage


#: What providers call the standard tier.
_STANDARD = frozenset({STANDARD, "default", "on_demand", "standard_only"})
#: What they say where they leave it open.
_UNSAID = frozenset({"", "auto"})


@dataclass(frozen=True, slots=True)
class Charge:
    """The tier and the price that a call is booked at."""

    #: What served it.
    tier: str
    #: None: the price of its usage under that tier, or no price is known.
    cost: Cost | None = None
    #: Why it is not that, in words; empty: nothing is doubtful.
    doubt: str = ""


def charge(answer: Answer, call: CallStarted, setup: ModelSetup, *, believed: bool) -> Charge:
    """Return how an answer is booked;
    ``believed``: its usage is the provider's, and not what was set aside.
    """
    price = setup.price and setup.price.sent(call.at, answer.usage)
    tier = _served(answer, call.tier, price)
    if price is None:
        return Charge(tier)
    reserved = _reserved(call, price)
    if not believed:
        # The log says why already.
        return Charge(tier, reserved)
    at = price.at(tier)
    if at is None:
        if price.at(call.tier) is None:
            return Charge(tier)
        doubt = f"the service tier {tier} served it, whose price is not known: batchd books what it set aside"
        return Charge(tier, reserved, doubt)
    stated, cost = answer.stated_usd, at.cost(answer.usage)
    # Gateways say 0 of what they do not know, or of what is billed elsewhere.
    if not stated:
        return Charge(tier)
    if reserved is not None and stated > reserved.total:
        doubt = f"its provider says that it costs ${stated:.6g}: batchd books what it set aside"
        return Charge(tier, reserved, doubt)
    return Charge(tier, cost.scaled(stated))


def _reserved(call: CallStarted, price: Price) -> Cost | None:
    """Return what was set aside for a call, shared out as its price is;
    None: nothing was, as no price was known.
    """
    if call.reserved_usd is None:
        return None
    given = call.reserved_tokens or (call.input_tokens, call.max_output_tokens)
    most = highest_cost([price.at(call.tier) or price], *given)
    return (most or Cost()).scaled(call.reserved_usd)


def _served(answer: Answer, asked: str, price: Price | None) -> str:
    """Return what served a call: as the provider says,
    else the dearer one of what it can have been.
    """
    said = answer.service_tier.strip().lower()
    if said in _STANDARD:
        return STANDARD
    if said not in _UNSAID:
        return said
    at = price and price.at(asked)
    if asked == STANDARD or price is None or at is None:
        return asked
    # It may not know of tiers at all.
    return max((asked, at), (STANDARD, price), key=lambda each: each[1].cost(answer.usage).total)[0]
