"""The check of a usage report:
what a provider says that a call came to, held against what was sent.
"""

from __future__ import annotations

from msgspec.structs import replace

from batchd.events import CallStarted
from batchd.records import Answer, ModelSetup, Usage


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
