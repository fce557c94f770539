from __future__ import annotations

import pytest
from replacing import replace

from batchd import tokens
from batchd.agent import context
from batchd.agent.charges import believed
from batchd.events import CallAnswered, CallStarted, TaskStarted, Terms
from batchd.records import Answer, ModelSetup, Price, Purpose, Rate, Usage
from batchd.taskstate import fold

RATE = Rate(input=1.0, cached_input=0.1, cache_write=1.25, output=2.0)
MODEL = ModelSetup(name="p/m", price=Price(rates=(RATE,), source="config"), tools="text")
CALL = CallStarted(
    at=2.0,
    purpose=Purpose.AGENT,
    input_tokens=1000,
    max_output_tokens=500,
    reserved_tokens=(1200, 600),
)


@pytest.mark.parametrize(
    ("read", "written", "window", "is_believed"),
    [
        (20_000, 15_000, 0, True),
        (20_001, 0, 0, False),
        (0, 15_001, 0, False),
        (4000, 4000, 4000, True),
        (4001, 0, 4000, False),
        (0, 4001, 4000, False),
        # A window may be set lower than it is, and providers count otherwise than we do.
        (2000, 500, 1100, True),
        (2001, 500, 1100, False),
    ],
)
def test_a_usage_far_beyond_what_was_sent_or_the_window_is_not_believed(
    read: int, written: int, window: int, *, is_believed: bool
) -> None:
    """Ten times what was sent, or asked for, and 10,000 tokens;
    or the window: what lies beyond is no usage of this call.
    """
    usage = Usage(calls=1, input_tokens=read, output_tokens=written)
    answer = Answer(content="Done.", usage=usage)
    taken, disbelieved = believed(answer, CALL, replace(MODEL, context_window=window))
    if is_believed:
        assert (taken, disbelieved) == (answer, None)
    else:
        # At its most expensive: all of it written to the cache.
        most = Usage(
            calls=1,
            input_tokens=1200,
            cache_write_tokens=1200,
            output_tokens=600,
            estimated=True,
        )
        assert (taken, disbelieved) == (replace(answer, usage=most), usage)


def test_without_a_price_the_tokens_that_were_set_aside_are_booked() -> None:
    """A journal of the version before does not say which:
    then those that the call was expected to take.
    """
    lie = Answer(content="Done.", usage=Usage(calls=1, input_tokens=10**14))
    taken, _ = believed(lie, replace(CALL, reserved_tokens=None), replace(MODEL, price=None))
    assert taken.usage == Usage(calls=1, input_tokens=1000, output_tokens=500, estimated=True)


def test_the_conversation_is_as_long_as_we_count_it() -> None:
    """What was set aside for an answer is no measure of how full the window is."""
    lie = Answer(content="Working.", usage=Usage(calls=1, input_tokens=10**14))
    answer, disbelieved = believed(lie, CALL, MODEL)
    started = TaskStarted(at=1.0, terms=Terms(model=MODEL, judge=MODEL))
    answered = CallAnswered(at=3.0, purpose=Purpose.AGENT, answer=answer, disbelieved=disbelieved)
    state = fold("Work.", [started, CALL, answered])
    assert context.size(state) == tokens.count_messages(state.messages) < 100
