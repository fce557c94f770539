"""Who may look: whoever knows the token, or was let in by it before."""

from __future__ import annotations

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
#: So many wrong tokens in this time, and the address that sent them has to wait.
_MOST_WRONG = 10
_WRONG_S = 60.0
#: Addresses that are remembered for their wrong tokens.
_ADDRESSES = 1000


class Gate:
    """Compares tokens, in constant time, and remembers who guesses."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        """``token``: empty where everybody may look."""
        self._token = token.encode()
        self._clock = clock
        self._code = b""
        self._code_until = 0.0
        self._wrong: dict[str, deque[float]] = {}

    @property
    def open(self) -> bool:
        """Whether everybody may look."""
        return not self._token

    def code(self) -> str:
        """Return a new word that is as good as the token, once, for ten minutes."""
        code = secrets.token_urlsafe(32)
        self._code, self._code_until = code.encode(), self._clock() + _CODE_S
        return code

    def knows(self, given: str, address: str) -> bool:
        """Return whether this is the token, or the code, which is used up by that; a wrong one is remembered."""
        word = given.encode("utf-8", "surrogateescape")
        right = hmac.compare_digest(word, self._token)
        once = bool(self._code) and hmac.compare_digest(word, self._code)
        if once:
            right, self._code = self._clock() < self._code_until, b""
        if not right:
            self._remember(address)
        return right

    def wait_s(self, address: str) -> int:
        """Return for how long nothing from an address is compared; 0: it is."""
        wrong = self._wrong.get(address)
        if not wrong or len(wrong) < _MOST_WRONG:
            return 0
        return max(0, int(wrong[0] + _WRONG_S - self._clock()) + 1)

    def session(self) -> str:
        """Return what a browser shows from now on: not the token, and good for seven days."""
        until = str(int(self._clock()) + SESSION_S)
        return f"{until}.{self._signed(until)}"

    def admits(self, session: str) -> bool:
        """Return whether a session is good."""
        until, _, sign = session.partition(".")
        known = until.isascii() and until.isdigit() and len(until) < 16  # noqa: PLR2004 (no honest moment is longer)
        return (
            hmac.compare_digest(
                sign.encode("utf-8", "surrogateescape"), self._signed(until).encode()
            )
            and known
            and self._clock() < int(until)
        )

    def _signed(self, until: str) -> str:
        text = f"batchd web session {until}".encode("utf-8", "surrogateescape")
        return hmac.new(self._token, text, hashlib.sha256).hexdigest()

    def _remember(self, address: str) -> None:
        wrong = self._wrong.pop(address, None) or deque(maxlen=_MOST_WRONG)
        while wrong and wrong[0] < self._clock() - _WRONG_S:
            wrong.popleft()
        wrong.append(self._clock())
        self._wrong[address] = wrong
        if len(self._wrong) > _ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
