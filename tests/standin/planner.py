"""Decides what becomes of a request;
the only memory of the conversations that the stand-in leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from batchd.demo.recordings import RecordedVerdict, Recording, mentioned, normalised
from batchd.records import Answer, Purpose
from standin import families, faults, scripts
from standin.cache_meter import CacheMeter
from standin.faults import Fault
from standin.scripts import NamePart
from standin.settings import ServerSettings
from standin.simulated_request import SimulatedRequest, prompt_of

_UNKNOWN = (
    "This is a stand-in that replays recorded conversations, and it has none for this prompt. "
    "Configure a real model to have the task done."
)
#: How batchd's summaries begin.
NOTES = "Summary of the work so far:"
_THOUGHT = "The user wants the task done. The next step is clear."


class AnswerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a request."""

    answer: Answer = scripts.FINAL
    #: Instead of an answer.
    refusal: Fault | None = None
    #: What a refusal asks the client to wait,
    #: and whether it does even where it is none of that kind.
    retry_after_s: float = 0.0
    retry_always: bool = False
    #: One of ``faults.DELIVERIES``, or empty.
    delivery: str = ""
    latency_s: float = 0.0
    #: Whether the answer carries its usage.
    usage: bool = True
    #: The stop sequence that ended the answer, if one did.
    stopped: str = ""
    #: About how many bytes its thinking comes to when sealed.
    sealed_size: int = 0


@dataclass(slots=True)
class _Talk:
    """A conversation: all tasks with this model and first user message."""

    prompt: str
    #: Answers in the latest request, with the one it got.
    answered: int = 0
    #: Whether a summary has taken the place of some answers,
    #: so that they cannot be counted in the request.
    compacted: bool = False


class Planner:
    """Plans answers and faults, each by its number of times in a conversation."""

    def __init__(self, recorded: Iterable[Recording], meter: CacheMeter) -> None:
        self._recorded = {normalised(r.first_prompt): r for r in recorded}
        self._meter = meter
        self.reset()

    def reset(self) -> None:
        """Forget all conversations: every fault may strike again."""
        self._talks: dict[tuple[str, str], _Talk] = {}
        #: The latest talk on a prompt, whatever its model: a judge may be another one.
        self._latest: dict[str, _Talk] = {}
        self._struck: Counter[tuple[str, str, NamePart]] = Counter()
        #: How much of a strike by the server's own faults is due: one at 1.
        self._due = 0.0

    def plan(self, request: SimulatedRequest, settings: ServerSettings) -> AnswerPlan:
        """Return what becomes of a request."""
        if settings.models and request.model not in settings.models:
            return AnswerPlan(refusal=Fault("404", request.model))
        try:
            parts = self._parts(request.model, settings)
        except ValueError:
            return AnswerPlan(refusal=Fault("404", request.model))
        talk = self._talk(request)
        latency_s = settings.latency_s + scripts.number(parts, "latency", 0)
        plain = not request.thinks and request.tier == "default"
        if (
            plain
            and len(parts) == 1
            and parts[0].name == "steps"
            and request.purpose is Purpose.AGENT
        ):
            # The benchmarks' own: nothing below applies to it.
            return AnswerPlan(answer=self._answer(request, talk, parts), latency_s=latency_s)
        names = {part.name for part in parts}
        if "reasoning" in names and request.thoughtless:
            return AnswerPlan(refusal=Fault("thoughtless", request.model))
        if overflow := self._overflow(request, parts):
            return AnswerPlan(refusal=overflow)
        fault = self._fault(request, talk, parts)
        if fault in faults.REFUSALS:
            return AnswerPlan(
                refusal=Fault(fault, request.model),
                retry_after_s=scripts.number(parts, "retry-after", settings.retry_after_s),
                retry_always="retry-after" in names,
                latency_s=scripts.number(parts, "latency", 0),
            )
        reply, stopped = scripts.cut(self._answer(request, talk, parts), request.stop)
        if request.thinks or "reasoning" in names:
            reply = replace(reply, reasoning=_THOUGHT)
        return AnswerPlan(
            answer=reply,
            delivery=fault,
            latency_s=latency_s,
            usage="no-usage" not in names,
            stopped=stopped,
            sealed_size=int(scripts.number(parts, "opaque", 0)),
        )

    def _parts(self, model: str, settings: ServerSettings) -> tuple[NamePart, ...]:
        """Return what strikes this request by the settings, and the parts of its model's name.

        Raises ``ValueError``.
        """
        try:
            parts = scripts.parse(model)
        except ValueError:
            parts = scripts.parse(settings.default)
        if settings.default and all(part.name in families.FAMILIES for part in parts):
            parts = (*parts, *scripts.parse(settings.default))
        if settings.faults:
            self._due += settings.share
            if self._due >= 1:
                self._due -= 1
                parts = (*scripts.parse(settings.faults), *parts)
        if of_model := settings.model_faults.get(model):
            parts = (*scripts.parse(of_model), *parts)
        return parts

    def _overflow(self, request: SimulatedRequest, parts: tuple[NamePart, ...]) -> Fault | None:
        """Return the refusal of a request that is too long for the window, where there is one."""
        window = int(scripts.number(parts, "window", 0))
        if not window:
            return None
        prompt, output = self._meter.prompt(request, cache=False).tokens, request.max_output
        if prompt + output <= window:
            return None
        name = "context-overflow" if prompt > window else "output-overflow"
        return Fault(name, request.model, window, prompt, output)

    def _fault(self, request: SimulatedRequest, talk: _Talk, parts: tuple[NamePart, ...]) -> str:
        """Return the fault that strikes this request, if one does."""
        if request.turn < scripts.number(parts, "after", 0):
            return ""
        spared = set()
        if request.tier != "flex":
            spared.add("flex-full")
        if not request.opaque:
            spared.add("seals-lost")
        for part in parts:
            known = part.name in faults.REFUSALS or part.name in faults.DELIVERIES
            if known and part.name not in spared and self._strikes(request, talk, part):
                return part.name
        return ""

    def _strikes(self, request: SimulatedRequest, talk: _Talk, part: NamePart) -> bool:
        key = (request.model, talk.prompt, part)
        if self._struck[key] >= part.number:
            return False
        self._struck[key] += 1
        return True

    def _talk(self, request: SimulatedRequest) -> _Talk:
        if request.purpose is Purpose.JUDGE:
            quoted = mentioned(request.first_user, self._latest)
            if quoted is not None:
                return self._talks.get((request.model, quoted)) or self._latest[quoted]
            return _Talk(request.first_user)
        key = (request.model, request.first_user)
        talk = self._talks.get(key)
        begins = request.turn == 0 and prompt_of(request.turns[-1].text) == request.first_user
        if talk is None or begins:
            talk = self._talks[key] = _Talk(request.first_user)
        self._latest[talk.prompt] = talk
        return talk

    def _answer(
        self, request: SimulatedRequest, talk: _Talk, parts: tuple[NamePart, ...]
    ) -> Answer:
        demo = any(part.name == "demo" for part in parts)
        if request.purpose is Purpose.JUDGE:
            if demo:
                return _said(self._verdict(talk))
            judging = [p for p in parts if p.name in {"judge-no", "judge-prose"}]
            struck = (p.name for p in judging if self._strikes(request, talk, p))
            return scripts.verdict(next(struck, None))
        if request.purpose is Purpose.COMPACTION:
            talk.compacted = True
            return scripts.SUMMARY
        # Where no summary was to be had, batchd has put a list of steps into its place.
        talk.compacted |= any(m.text.startswith(NOTES) for m in request.turns)
        turn = talk.answered if talk.compacted else request.turn
        talk.answered = turn + 1
        if not demo:
            return scripts.answer(parts, turn, native=request.native)
        recording = self._recorded.get(normalised(talk.prompt))
        if recording is None:
            return Answer(content=_UNKNOWN)
        return recording.answer(turn)

    def _verdict(self, talk: _Talk) -> RecordedVerdict:
        quoted = mentioned(talk.prompt, self._recorded)
        recording = self._recorded.get(normalised(quoted or talk.prompt))
        return (
            recording.verdict(talk.answered)
            if recording
            else RecordedVerdict(done=False, feedback=_UNKNOWN)
        )


def _said(verdict: RecordedVerdict) -> Answer:
    content = msgspec.json.encode({"done": verdict.done, "feedback": verdict.feedback}).decode()
    return Answer(content=content, usage=verdict.usage)
