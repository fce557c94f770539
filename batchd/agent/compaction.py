"""Compaction: a conversation that fills its window is shortened by a pure plan, one step at a time.

Each compaction breaks the provider's prompt cache, so each frees a good part at once: old tool
outputs, oldest first; where they are not enough, the middle is summarised by the model, while the
provider still has it in its cache; where that does not help either, because what is large is new,
the largest outputs are cut in their middles. Every step makes the conversation shorter by our own
count, which is held before it is taken, so that they come to an end;
where none does, the task ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from batchd import tokens
from batchd.agent import context, prompts
from batchd.records import Message, Purpose
from batchd.taskstate import ELIDED, GO_ON, NOTES, TaskState, clipped

#: The system prompt and the user's own words stay.
HEAD = 2
#: A summary takes at most this share of the window.
_SUMMARY = 1 / 8
#: What a message of the middle leaves in a list of steps, in characters.
_STEP_CHARS = 200
_UNAVAILABLE = "(There is no summary; these steps were taken, oldest first.)"


@dataclass(frozen=True, slots=True)
class Compact:
    """Shorten the conversation."""

    #: Positions of tool outputs to replace by a stub.
    elided: tuple[int, ...] = ()
    #: Positions of messages to cut in their middles, each with the characters to keep.
    clipped: tuple[tuple[int, int], ...] = ()
    #: Or: messages in ``[start, end)`` to replace by the summary.
    start: int = 0
    end: int = 0
    summary: str | None = None
    #: Tokens by the provider's count to one of ours.
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Summarise:
    """The step that has the messages in ``[HEAD, end)`` summarised."""

    end: int
    input_tokens: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Overfull:
    """The verdict that nothing more can be left out. What stays takes ``needed`` tokens of
    ``window``.
    """

    needed: int
    window: int
    #: Whether the prompts alone are too long.
    opening: bool


def plan(state: TaskState, used: int) -> Compact | Summarise | Overfull | None:
    """Return the next step towards a conversation that fits;
    None where it does, or nothing helps and it still can.

    ``used`` is what the next request takes.
    """
    window = state.setup(Purpose.AGENT).context_window
    if not window or used <= context.full(window):
        return None
    return _Measured(state, used).plan()


def applied(state: TaskState, used: int) -> Compact | Overfull:
    """Return the step that puts the summary, which is paid, into the conversation."""
    measured = _Measured(state, used)
    step = measured.summary()
    end = step.end if step else measured.tail
    # The window may have shrunk since: then all but the prompts makes room for it.
    text = (state.summary or "").strip()
    return measured.with_summary((end, len(state.messages)), text)


class _Measured:
    """A conversation with the tokens of each message, as the provider would count them."""

    def __init__(self, state: TaskState, used: int) -> None:
        self.messages = state.messages
        self._recovering = state.overflows > 0
        self.used = used
        setup = state.setup(Purpose.AGENT)
        # Where the provider has not named it, the window is as long as what is in it.
        self.window = setup.context_window or used
        own = [tokens.count_messages((m,)) for m in self.messages]
        overhead = context.overhead(state)
        #: Between half and double: beyond that it is no tokenizer's difference.
        self.scale = min(2.0, max(0.5, used / max(1, overhead + sum(own))))
        self.costs = [self.scale * n for n in own]
        self.base = self.scale * overhead + sum(self.costs[:HEAD])
        #: A long first prompt must not have every step shorten what little is left; what leaves no
        #: room for an answer is too much all the same.
        self.limit = min(
            context.longest(self.window),
            max(
                context.COMPACTION_SHARE * self.window,
                self.base + max(0.0, self.window - self.base) / 2,
            ),
        )
        self.starts = [i for i in range(HEAD, len(own)) if self.messages[i].role == "assistant"]

    def plan(self) -> Compact | Summarise | Overfull | None:
        most = context.longest(self.window)
        if self.base > most:
            return Overfull(round(self.base), self.window, opening=True)
        if self.used <= self.limit:
            return None
        old = self._old_outputs()
        spare = {i: self.costs[i] - self.scale * _stub() for i in old}
        if old and self.used - sum(spare.values()) <= self._enough:
            return self._elide(spare)
        if step := self.summary():
            return step
        if old:
            return Compact(elided=old, scale=self.scale)
        if cut := self._clip():
            return Compact(clipped=cut, scale=self.scale)
        if self._recovering:
            most = self.limit  # what filled the window to the brim has just overflowed it
        if self.used <= most:
            return None
        # What is left consists of the model's own large tool calls: all but the prompts may go.
        return self.with_summary((self.tail, len(self.messages)), "")

    @property
    def _target(self) -> float:
        """What is aimed at."""
        return self.base + (self.limit - self.base) / 2

    @property
    def _enough(self) -> float:
        """What will do."""
        return self.base + (self.limit - self.base) * 0.75

    @cached_property
    def tail(self) -> int:
        """Where the newest messages begin, which the model works on:
        with an answer of the model.
        """
        if not self.starts:
            return HEAD
        tail, length = self.starts[-1], sum(self.costs[self.starts[-1] :])
        for i, start in reversed(list(enumerate(self.starts[:-1]))):
            length += sum(self.costs[start : self.starts[i + 1]])
            if length > (self.limit - self.base) / 4:
                break
            tail = start
        return tail

    def _old_outputs(self) -> tuple[int, ...]:
        """Return the tool outputs before the tail that are worth a stub."""
        worth = 4 * self.scale * _stub()
        old = range(HEAD, self.tail)
        return tuple(i for i in old if self.messages[i].role == "tool" and self.costs[i] > worth)

    def _elide(self, spare: dict[int, float]) -> Compact:
        """Replace the oldest outputs, as many as it takes."""
        left, elided = float(self.used), []
        for i, gain in spare.items():
            if left <= self._target:
                break
            elided.append(i)
            left -= gain
        return Compact(elided=tuple(elided), scale=self.scale)

    def summary(self) -> Summarise | None:
        """Return the request for a summary of the middle,
        or as much of it as fits into a request.
        """
        # A summary alone is no middle: it would be bought again for nothing.
        noted = any(m.content.startswith(NOTES) for m in self.messages[HEAD : HEAD + 1])
        ends = [i for i in self.starts[1 + noted :] if i <= self.tail]
        return next((s for end in reversed(ends) if (s := self._summary(end))), None)

    def _summary(self, end: int) -> Summarise | None:
        """Return the request for a summary up to ``end``, if it fits and is worth its price."""
        covered = sum(self.costs[HEAD:end])
        output = self._summary_tokens
        asked = self.base + covered + self.scale * _request()
        if covered < self._worth:
            return None
        if asked + output > self.window * (1 - context.ESTIMATE_MARGIN):
            return None
        return Summarise(end, round(asked), output)

    @property
    def _summary_tokens(self) -> int:
        return max(context.MIN_OUTPUT, int(self.window * _SUMMARY))

    @property
    def _worth(self) -> float:
        """What a summary must stand for at least;
        what is around it takes a good part of anything smaller.
        """
        return max((self.limit - self.base) / 8, 4 * self.scale * _frame())

    def with_summary(self, ends: tuple[int, ...], text: str) -> Compact | Overfull:
        """Return the step that replaces all up to the first of ``ends`` that is worth it.

        A summary is at most half as long as what it stands for.
        """
        for end in ends:
            covered = sum(self.costs[HEAD:end])
            if covered < self._worth:
                continue
            said = text or _steps(self.messages[HEAD:end])
            most = min(float(self._summary_tokens), covered / 2) / self.scale
            said = context.clip(said, tokens.count(said), most)
            return Compact(start=HEAD, end=end, summary=said, scale=self.scale)
        return Overfull(self.used, self.window, opening=False)

    def _clip(self) -> tuple[tuple[int, int], ...]:
        """Return the cuts that make the largest texts fit; tool calls cannot be cut."""
        texts = {i: n for i in range(HEAD, len(self.messages)) if (n := self._clippable(i))}
        costs = [self.scale * n for n in texts.values()]
        budget = self._enough - (self.used - sum(costs))
        height = max(context.MIN_CLIPPED, context.level(costs, budget) if budget > 0 else 0.0)
        return tuple(
            (i, context.kept(self.messages[i].content, n, height / self.scale))
            for i, n in texts.items()
            if self.scale * n > 1.1 * height
        )

    def _clippable(self, i: int) -> int:
        """Return how many tokens of a message can be cut,
        if that is worth it: thinking is not cut either.
        """
        message = self.messages[i]
        if message.tool_calls or self.costs[i] <= 2 * context.MIN_CLIPPED:
            return 0
        count = tokens.count(message.content)
        return count if self.scale * count > 2 * context.MIN_CLIPPED else 0


@cache
def _stub() -> int:
    return tokens.count_messages((Message("tool", ELIDED),))


@cache
def _frame() -> int:
    """Return the tokens of a summary that says nothing, and of the note that it was cut."""
    notes = (Message("assistant", NOTES), Message("user", GO_ON))
    return tokens.count_messages(notes) + tokens.count(clipped("x" * 10_000_000, 0))


@cache
def _request() -> int:
    return tokens.count_messages((Message("user", prompts.COMPACTION),))


def _steps(messages: tuple[Message, ...]) -> str:
    """Return what was done, for want of a summary: a line a message of the model."""
    lines = [_UNAVAILABLE]
    for message in messages:
        if message.content.startswith(NOTES):
            lines.append(message.content)
        elif message.role == "assistant":
            said = [message.content, *(f"{c.name} {c.arguments}" for c in message.tool_calls)]
            # Of a long text only the beginning is looked at.
            words = (s[: 4 * _STEP_CHARS].split() for s in said)
            lines += [f"- {' '.join(w)[:_STEP_CHARS]}" for w in words if w]
    return "\n".join(lines)
