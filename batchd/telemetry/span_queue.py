"""Spans that wait to be sent: bounded, whatever the receiver does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from batchd.telemetry.spans import Span

#: Spans that wait at most, and the characters of all texts in them; then the oldest are lost.
_MAX_SPANS = 20_000
_MOST_TEXT = 32 << 20


class SpanQueue:
    """A queue from the daemon's loop to the thread that sends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: deque[Span] = deque()
        self._text = 0
        #: How many gave way to others, or were refused, since that was reported.
        self._lost = 0

    def put(self, span: Span) -> None:
        """Queue a span."""
        with self._lock:
            self._spans.append(span)
            self._text += span.text
            self._bound()

    def take(self, most: int) -> list[Span]:
        """Return the oldest spans, at most so many."""
        with self._lock:
            count = min(most, len(self._spans))
            taken = [self._spans.popleft() for _ in range(count)]
            self._text -= sum(span.text for span in taken)
        return taken

    def put_back(self, spans: Sequence[Span]) -> None:
        """Queue spans again that could not be sent, before all others."""
        with self._lock:
            self._spans.extendleft(reversed(spans))
            self._text += sum(span.text for span in spans)
            self._bound()

    def lose(self, count: int) -> None:
        """Note that spans were taken in vain."""
        with self._lock:
            self._lost += count

    def lost(self) -> int:
        """Return how many were lost since this was asked last."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def _bound(self) -> None:
        while len(self._spans) > _MAX_SPANS or (self._text > _MOST_TEXT and len(self._spans) > 1):
            self._text -= self._spans.popleft().text
            self._lost += 1
