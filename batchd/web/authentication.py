"""Decides who may look: all who know the token, or were let in by it before."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable

#: How long a browser is remembered (seconds).
SESSION_S = 7 * 86_400
#: How long the code in the address that a terminal shows can be used, once (seconds).
_CODE_S = 600.0
#: So many wrong tokens in this time, and somebody guesses: …
_MOST_WRONG = 10
_WRONG_S = 60.0
#: … then each comparison takes a turn of so long (seconds).
TURN_S = 0.02


class TokenCheck:
    """Compares tokens, in constant time, and one after the other while somebody guesses.

    One who guesses is never shut out:
    behind a proxy all come from one address, the right ones among them.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        """``token``: empty where everybody may look."""
        self._token = token.encode()
        self._clock = clock
        self._code = b""
        self._code_until = 0.0
        self._turn = asyncio.Lock()
        #: When the latest wrong tokens came.
        self._wrong: deque[float] = deque(maxlen=_MOST_WRONG)

    @property
    def open(self) -> bool:
        """Whether everybody may look."""
        return not self._token

    def code(self) -> str:
        """Return a new word that is as good as the token, once, for ten minutes."""
        code = secrets.token_urlsafe(32)
        self._code, self._code_until = code.encode(), self._clock() + _CODE_S
        return code

    async def knows(self, given: str) -> bool:
        """Return whether this is the token, or the code, which is used up by that."""
        if self._guessed():
            async with self._turn:
                await asyncio.sleep(TURN_S)
        word = given.encode("utf-8", "surrogateescape")
        right = hmac.compare_digest(word, self._token)
        once = bool(self._code) and hmac.compare_digest(word, self._code)
        if once:
            right, self._code = self._clock() < self._code_until, b""
        if not right:
            self._wrong.append(self._clock())
        return right

    def _guessed(self) -> bool:
        return len(self._wrong) == _MOST_WRONG and self._wrong[0] > self._clock() - _WRONG_S

    def session(self) -> str:
        """Return what a browser shows from now on: not the token, and good for seven days."""
        # No two browsers have the same one, so that the log can tell them apart.
        head = f"{int(self._clock()) + SESSION_S}.{secrets.token_hex(8)}"
        return f"{head}.{self._signed(head)}"

    def key(self, session: str) -> str:
        """Return what a browser shows beside its session to give orders.

        It is given only for the token, and kept where other servers on this machine cannot read it,
        as they can the cookie: so a session that was stolen reads, and orders nothing.
        """
        return self._signed(f"orders {session}")

    def admits(self, session: str) -> bool:
        """Return whether a session is good."""
        head, _, sign = session.rpartition(".")
        until = head.partition(".")[0]
        known = (
            until.isascii() and until.isdigit() and len(until) < 16
        )  # no honest moment is longer
        return (
            hmac.compare_digest(
                sign.encode("utf-8", "surrogateescape"), self._signed(head).encode()
            )
            and known
            and self._clock() < int(until)
        )

    def _signed(self, what: str) -> str:
        text = f"batchd web session {what}".encode("utf-8", "surrogateescape")
        return hmac.new(self._token, text, hashlib.sha256).hexdigest()
