"""The conversation as it is sent: the owner's texts, how full the window is, and compaction.

Compaction is a pure plan, one step at a time. Each breaks the provider's prompt cache, so each
frees a good part at once: old tool outputs, oldest first; where they are not enough, the middle is
summarised by the model, while the latest exchanges stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePosixPath

from batchd import tokens
from batchd.agent import prompts
from batchd.masking import Masker
from batchd.records import FileStamp, Message, ModelSetup, Purpose
from batchd.sandbox import Workplace
from batchd.taskstate import ELIDED, GO_ON, NOTES, TaskState, clipped

_FILE, _SKILLS, _SKILL = "AGENTS.md", ".agents/skills", "SKILL.md"
#: What is quoted at most (bytes), and how many skills are named.
_MAX_QUOTED_BYTES, _MOST_SKILLS = 8 << 10, 20
#: A file that is none, as a FIFO, is not waited for longer (seconds).
_PATIENCE_S = 5.0


async def words(
    place: Workplace, files: Mapping[str, FileStamp] | None, most: int = _MAX_QUOTED_BYTES
) -> str:
    """Return what the owner says, for the system prompt; empty: nothing.

    ``files``: what lies there, None: more than is listed. ``most``: what is quoted of AGENTS.md, in
    bytes, where a small window has no room for more.
    It is read by commands in the sandbox, as all contents are. Raises ``SandboxError``.
    """
    parts = []
    if files is None or _FILE in files:
        argv = ["head", "-c", str(_MAX_QUOTED_BYTES + 1), "--", _FILE]
        room = 2 * _MAX_QUOTED_BYTES
        ran = await place.run(argv, timeout_s=_PATIENCE_S, max_output_bytes=room, own=True)
        if ran.exit_code == 0 and ran.output.strip():
            # Where a secret is masked, what was read is shorter than the file;
            # a link is shorter than what it leads to.
            size = max(len(ran.output.encode()), files[_FILE][0] if files else 0)
            parts.append(_quoted(ran.output, size, min(most, _MAX_QUOTED_BYTES), place.masker))
    skills = sorted(path for path in files or () if _is_skill(path))[:_MOST_SKILLS]
    if skills:
        argv = ["grep", "-m1", "-H", "^description:", "--", *skills]
        ran = await place.run(argv, timeout_s=_PATIENCE_S, own=True)
        parts.append(_listed(skills, ran.output))
    return "\n\n".join(parts)


def _quoted(text: str, size: int, most: int, masker: Masker) -> str:
    kept, cut = text, ""
    if size > most:
        # Half of a secret may stand where it is cut.
        kept = masker.before_cut(text.encode()[:most].decode("utf-8", "ignore"))
        cut = f"\n[… the rest of {_FILE} is not quoted]"
    return f"The owner of /task says, in {_FILE}:\n<{_FILE}>\n{kept.strip()}{cut}\n</{_FILE}>"


def _is_skill(path: str) -> bool:
    parts = PurePosixPath(path)
    return parts.name == _SKILL and str(parts.parent.parent) == _SKILLS


def _listed(skills: list[str], said: str) -> str:
    """Return the skills with their descriptions; ``grep`` has found one line of each."""
    found = dict(
        line.split(":description:", 1) for line in said.splitlines() if ":description:" in line
    )
    lines = [f"- {path}: {found.get(path, '').strip()[:200]}".rstrip(": ") for path in skills]
    return "Skills that are there to be read:\n" + "\n".join(lines)


#: Past this share of the window the conversation is shortened (the design's number).
COMPACTION_SHARE = 0.8
#: This share of it is left free: counts made before a call are estimates.
ESTIMATE_MARGIN = 0.05
#: A call with room for less output than this brings nothing.
MIN_OUTPUT = 256
#: What the judge is shown at most where its model's window is unknown.
_JUDGED = 100_000
#: No text is clipped to fewer tokens than this: the note of the cut alone takes some twenty.
MIN_CLIPPED = 80
#: Characters that are counted in no time: some milliseconds, where they are not words at all.
_MAX_CHARS_COUNTED_INLINE = 20_000
#: A tool's output is kept at least to so many bytes.
_MIN_OUTPUT_BYTES = 1024


@cache
def _schemas(*, stays: bool) -> int:
    return tokens.count_tools(prompts.tools(stays=stays))


def overhead(state: TaskState) -> int:
    """Return the tokens of an agent's request beside its messages:
    the tools' schemas, where it has any.
    """
    return 0 if state.setup(Purpose.AGENT).tools == "text" else _schemas(stays=state.stays)


def size(state: TaskState) -> int:
    """Return the tokens of the next request:
    the provider's count, and ours of what it has not seen.
    """
    if state.seen_tokens:
        unseen = tokens.count_messages(state.messages[state.seen :])
        # Whatever it says of them, what goes back to it unread goes over the line with each call.
        opaque = sum(map(tokens.count_items, state.messages[: state.seen]))
        return max(state.seen_tokens, opaque) + round(state.scale * unseen)
    counted = overhead(state) + tokens.count_messages(state.messages)
    return round(state.scale * counted)


def full(window: int) -> float:
    """Return the tokens past which a conversation is shortened:
    a share of the window, or what is worth a call.
    """
    return min(COMPACTION_SHARE * window, longest(window))


def longest(window: int) -> float:
    """Return the longest input that is worth a call."""
    return window * (1 - ESTIMATE_MARGIN) - MIN_OUTPUT


def laborious(state: TaskState) -> bool:
    """Return whether to count the next request, or to plan how to shorten it,
    takes too long for a loop that others wait for.
    """
    unseen = state.messages[state.seen :] if state.seen_tokens else state.messages
    length = sum(message.length for message in unseen)
    if length > _MAX_CHARS_COUNTED_INLINE or state.summary is not None:
        return True
    # Near its end the whole conversation is counted.
    window = state.setup(Purpose.AGENT).context_window
    return bool(window) and state.seen_tokens + state.scale * length > full(window)


def room(input_tokens: int, setup: ModelSetup) -> int:
    """Return how many tokens of output fit into the window behind ``input_tokens``."""
    window = setup.context_window
    if not window:
        return 1 << 31
    return max(MIN_OUTPUT, int(window * (1 - ESTIMATE_MARGIN)) - input_tokens)


def output_bytes(setup: ModelSetup) -> int | None:
    """Return to how many bytes a tool's output is cut so that several fit into a small window."""
    # A byte a token of the window: a quarter to a half of it, as texts go.
    window = setup.context_window
    return max(_MIN_OUTPUT_BYTES, window) if window else None


def judged(setup: ModelSetup) -> int:
    """Return the tokens of evidence that may be put before the judge."""
    window = setup.context_window
    if not window:
        return _JUDGED
    answer = min(1024, window // 4)
    return (
        int(window * (1 - ESTIMATE_MARGIN))
        - answer
        - tokens.count_messages(prompts.judge(*("" for _ in prompts.EVIDENCE)))
    )


def level(costs: Sequence[float], budget: float) -> float:
    """Return the height to which ``costs`` must be cut for their sum
    to be ``budget``: small ones stay whole.
    """
    left = budget
    for i, cost in enumerate(sorted(costs)):
        share = left / (len(costs) - i)
        if cost > share:
            return share
        left -= cost
    return max(costs, default=0.0)


def fitted(texts: Sequence[str], budget: int) -> list[str]:
    """Return ``texts`` with the longest cut in their middles so that all take ``budget`` tokens."""
    costs = [tokens.count(text) for text in texts]
    if sum(costs) <= budget:
        return list(texts)
    height = level(costs, budget)
    return [clip(text, cost, height) for text, cost in zip(texts, costs, strict=True)]


def clip(text: str, cost: int, height: float) -> str:
    """Return a text of ``cost`` tokens cut in its middle
    to at most ``height``, or to the note of the cut.
    """
    return text if cost <= height else clipped(text, kept(text, cost, height))


def kept(text: str, cost: int, height: float) -> int:
    """Return how many characters of a text of ``cost`` tokens are to be kept
    so that they take at most ``height``.
    """
    keep = int(len(text) * max(0.0, height - MIN_CLIPPED / 4) / cost * 0.95)
    # Both ends of it may take more tokens a character than the middle.
    while keep and (takes := tokens.count(clipped(text, keep))) > height:
        keep = int(keep * min(0.9, height / takes))
    return keep


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
    if not window or used <= full(window):
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
        around = overhead(state)
        #: Between half and double: beyond that it is no tokenizer's difference.
        self.scale = min(2.0, max(0.5, used / max(1, around + sum(own))))
        self.costs = [self.scale * n for n in own]
        self.base = self.scale * around + sum(self.costs[:HEAD])
        #: A long first prompt must not have every step shorten what little is left; what leaves no
        #: room for an answer is too much all the same.
        self.limit = min(
            longest(self.window),
            max(
                COMPACTION_SHARE * self.window,
                self.base + max(0.0, self.window - self.base) / 2,
            ),
        )
        self.starts = [i for i in range(HEAD, len(own)) if self.messages[i].role == "assistant"]

    def plan(self) -> Compact | Summarise | Overfull | None:
        most = longest(self.window)
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
        target = self.base + (self.limit - self.base) / 2
        for i, gain in spare.items():
            if left <= target:
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
        if asked + output > self.window * (1 - ESTIMATE_MARGIN):
            return None
        return Summarise(end, round(asked), output)

    @property
    def _summary_tokens(self) -> int:
        return max(MIN_OUTPUT, int(self.window * _SUMMARY))

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
            said = clip(said, tokens.count(said), most)
            return Compact(start=HEAD, end=end, summary=said, scale=self.scale)
        return Overfull(self.used, self.window, opening=False)

    def _clip(self) -> tuple[tuple[int, int], ...]:
        """Return the cuts that make the largest texts fit; tool calls cannot be cut."""
        texts = {i: n for i in range(HEAD, len(self.messages)) if (n := self._clippable(i))}
        costs = [self.scale * n for n in texts.values()]
        budget = self._enough - (self.used - sum(costs))
        height = max(MIN_CLIPPED, level(costs, budget) if budget > 0 else 0.0)
        return tuple(
            (i, kept(self.messages[i].content, n, height / self.scale))
            for i, n in texts.items()
            if self.scale * n > 1.1 * height
        )

    def _clippable(self, i: int) -> int:
        """Return how many tokens of a message can be cut,
        if that is worth it: thinking is not cut either.
        """
        message = self.messages[i]
        if message.tool_calls or self.costs[i] <= 2 * MIN_CLIPPED:
            return 0
        count = tokens.count(message.content)
        return count if self.scale * count > 2 * MIN_CLIPPED else 0


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
