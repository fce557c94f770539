"""One receiver's messages: gathered, kept on disk,
sent at a bounded rate, tried again until they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from batchd.actions import Action
from batchd.backoff import doubled
from batchd.errors import DeliveryError
from batchd.log import get_logger
from batchd.notify import channels
from batchd.notify.channels import ReceiverTarget
from batchd.notify.format import EventV1, NotificationV1
from batchd.notify.message import clean, compose, folded
from batchd.notify.pending_messages import PendingMessages

#: What happens within so many seconds comes in one message.
_GATHER_S = 2.0
_FIRST_BACKOFF_S = 2.0
_LONGEST_BACKOFF_S = 900.0
#: Retry-After is honoured up to a day.
_LONGEST_WAIT_S = 86_400.0
_MINUTE_S = 60.0
#: Messages that wait; more are folded into one, which has the most important and counts the rest.
_MAX_PENDING = 50
#: The same for a command, which gets each event by itself.
_MOST_APART = 1000


class Courier:
    """The courier of one receiver: brings its messages, one after another.

    Lives in the loop of the notifications' thread.
    """

    def __init__(self, target: ReceiverTarget, state: Path) -> None:
        self._target = target
        #: Programs look at one event at a time:
        #: what came together would be one batch of several to them.
        self._apart = target.settings.kind == "command"
        self._waiting = PendingMessages(state, target.name)
        #: The message that is being tried, and those behind it.
        self._tried, self._messages = self._waiting.load()
        self._log = get_logger(receiver=target.name)
        #: When messages were first tried, those of the last minute.
        self._sent: deque[float] = deque()
        #: Whether what was written last could be written.
        self._durable = True
        self._came = asyncio.Event()
        #: Set where nothing waits, or nothing can be done at this time.
        self._settled = asyncio.Event()
        #: Cuts waits short.
        self._hurry = asyncio.Event()
        (self._came if self._tried or self._messages else self._settled).set()

    def serves(self, target: ReceiverTarget) -> bool:
        """Take over what has changed of a receiver, and try again at once;
        False: it is too much.
        """
        if target != self._target:
            return False
        self._target = target
        self._hurry.set()
        return True

    def add(self, events: Sequence[EventV1]) -> None:
        """Take up what happened, as far as this receiver wants to know;
        it is on disk when this returns.
        """
        wanted = [e for e in events if e.event in self._target.settings.on]
        if not wanted:
            return
        cleaned = [clean(event, self._target.masker) for event in wanted]
        for one in [[event] for event in cleaned] if self._apart else [cleaned]:
            self._keep(compose(one))
        if len(self._messages) > (_MOST_APART if self._apart else _MAX_PENDING):
            self._fold()
        self._settled.clear()
        self._came.set()

    async def run(self) -> None:
        """Bring messages, for ever."""
        while True:
            if self._tried is None:
                await self._came.wait()
                if not self._apart:
                    await self._sleep(_GATHER_S)
                await self._turn()
                if not self._apart:
                    self._fold()
                self._tried = self._messages.pop(0)
                self._waiting.try_(self._tried)
            await self._bring(self._tried)
            self._waiting.drop([self._tried])
            self._tried = None
            if not self._messages:
                self._waiting.clear()  # of what was folded in memory, while the disk took nothing
                self._came.clear()
                self._settled.set()

    async def settle(self) -> None:
        """Gather no more, and return when nothing waits, or nothing can be done about it now."""
        self._hurry.set()
        await self._settled.wait()

    def _keep(self, message: NotificationV1) -> None:
        self._messages.append(message)
        try:
            self._waiting.keep(message)
        except OSError as error:
            if self._durable:
                why = f"messages that wait are in memory alone, and lost when the daemon ends: {error}"
                self._log.warning(Action.NOTIFY_FAILED, message=why, trying_again=True)
            self._durable = False
        else:
            self._durable = True

    def _fold(self) -> None:
        """Make one message of all that wait, but for one that was tried: it may have arrived."""
        if len(self._messages) > 1:
            together, self._messages = self._messages, []
            self._keep(folded(together))
            if self._durable:
                self._waiting.drop(together)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or not so long where there is reason to hurry."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
        self._hurry.clear()

    async def _turn(self) -> None:
        """Wait until another message may go."""
        clock, most = asyncio.get_running_loop().time, self._target.settings.max_per_minute
        while self._sent and self._sent[0] + _MINUTE_S <= clock():
            self._sent.popleft()
        if len(self._sent) >= most:
            await asyncio.sleep(self._sent.popleft() + _MINUTE_S - clock())
        self._sent.append(clock())

    async def _bring(self, message: NotificationV1) -> None:
        """Try until it has arrived, or is given up."""
        log = self._log.bind(notification=message.id, subject=message.subject)
        deadline = _moment(message.at) + self._target.settings.give_up_s
        for tries in itertools.count(1):
            try:
                answer = await channels.send(self._target, message)
            except DeliveryError as error:
                if error.final or time.time() >= deadline:
                    name = self._target.name
                    fix = f"batchd gives it up; fix [notify.{name}], then run batchd notify --test {name}"
                    log.error(Action.NOTIFY_FAILED, message=str(error), tries=tries, mend=fix)
                    return
                if tries == 1:
                    log.warning(Action.NOTIFY_FAILED, message=str(error), trying_again=True)
                self._settled.set()
                await self._sleep(_pause(tries, error.retry_after_s))
            else:
                log.info(Action.NOTIFIED, answer=answer, tries=tries)
                return


def _pause(tries: int, retry_after_s: float) -> float:
    """Return the time until the next try:
    doubling, with jitter, and not before the receiver wants it.
    """
    backoff = doubled(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, tries - 1)
    backoff *= random.uniform(0.5, 1.0)  # noqa: S311 (it spreads tries, it hides nothing)
    return max(backoff, min(retry_after_s, _LONGEST_WAIT_S))


def _moment(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
