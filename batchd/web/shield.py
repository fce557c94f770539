"""What stands before every request: which names, which methods,
who may look or order; and the headers of every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchd import trees
from batchd.errors import NotPossibleError
from batchd.records import policy
from batchd.spool import files

#: The file in the state directory, mode 0600.
NAME = "web.token"
_MIN_TOKEN_CHARS = 16


def kept(state: Path) -> str:
    """Return the token of a state directory; it is made where there is none.

    Raises ``NotPossibleError``.
    """
    path = state / NAME
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _token_in(path)
        # Of two processes that make one at once, one wins, and both read what it wrote.
        with contextlib.suppress(FileExistsError):
            token = f"{secrets.token_urlsafe(32)}\n".encode()
            files.write_whole(path, token, replace=False, mode=0o600)
            if os.geteuid() == 0:  # the daemon's user must be able to read it, too
                os.chown(path, state.stat().st_uid, state.stat().st_gid, follow_symlinks=False)
        return _token_in(path)
    except OSError as error:
        raise NotPossibleError(
            f"{path}: the token of the page cannot be kept there: {error.strerror}; "
            "run this as the daemon's user, or name a token_file in [web]"
        ) from None


def _token_in(path: Path) -> str:
    fd = os.open(path, trees.OPEN_FILE)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        text = file.read(1024) if stat.S_ISREG(found.st_mode) else b""
    if found.st_uid not in {0, os.geteuid(), path.parent.stat().st_uid} or found.st_mode & 0o077:
        raise NotPossibleError(f"{path}: others may read or change it; remove it, and start again")
    token = text.decode("ascii", "replace").strip()
    if len(token) < _MIN_TOKEN_CHARS:
        raise NotPossibleError(f"{path}: it holds no token; remove it, and start again")
    return token


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
        if len(self._wrong) == _MOST_WRONG and self._wrong[0] > self._clock() - _WRONG_S:
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

    def ticket(self, session: str, order: bytes) -> str:
        """Return what shows that a session was asked whether it means this very order."""
        return self._signed(f"order {session} {order.hex()}")

    def admits(self, session: str) -> bool:
        """Return whether a session is good."""
        head, _, sign = session.rpartition(".")
        until = head.partition(".")[0]
        shown = sign.encode("utf-8", "surrogateescape")
        right = hmac.compare_digest(shown, self._signed(head).encode())
        # No honest moment is longer.
        known = until.isascii() and until.isdigit() and len(until) < 16
        return right and known and self._clock() < int(until)

    def _signed(self, what: str) -> str:
        text = f"batchd web session {what}".encode("utf-8", "surrogateescape")
        return hmac.new(self._token, text, hashlib.sha256).hexdigest()


#: Everything comes from here, nothing stands inline, no page frames it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
#: What the page to sign in is made of; there is no secret in it.
_FREE = ("/session", "/assets/")
#: Where orders are asked for, and confirmed: all that can be posted to, where orders are allowed.
ASKED, CONFIRMED = "/api/orders", "/api/orders/confirmed"
#: The header in which a page shows the key to its session.
_KEY = "x-batchd-key"
#: What a task file is sent as; the order to take it is in a header then.
FILE_TYPE, ORDER_HEADER = "application/octet-stream", "x-batchd-order"


@dataclass(slots=True, eq=False)
class RequestShield:
    """Lets through what may pass. An ASGI application around another."""

    _app: ASGIApp
    _gate: TokenCheck
    #: Those that it is called by, beside addresses.
    _hosts: frozenset[str]
    #: What browsers are shown first.
    _login: str
    #: The verbs of those orders that they may give.
    _orders: Sequence[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = await self._refusal(scope)
        await (refusal or self._app)(scope, receive, guarded)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        named = headers.getlist("host")
        if len(named) != 1 or not policy.means(named[0], self._hosts):
            why = "this name is not known here: use the address or localhost, or name it in [web] hosts"
            return as_json({"error": why}, 421)
        if self._orders and scope["method"] == "POST" and scope["path"] in {ASKED, CONFIRMED}:
            return self._misgiven(scope, headers)
        if scope["method"] not in {"GET", "HEAD"}:
            why = "this page only shows; orders are given with the command batchd"
            return as_json({"error": why}, 405, {"Allow": "GET, HEAD"})
        if self._gate.open or scope["path"].startswith(_FREE):
            return None
        if "authorization" in headers:
            return await refused(self._gate, headers)
        if self._gate.admits(session(scope)):
            return None
        if "text/html" in headers.get("accept", ""):
            return Response(self._login, 401, {"WWW-Authenticate": "Bearer"}, "text/html")
        return unknown()

    def _misgiven(self, scope: Scope, headers: Headers) -> Response | None:
        """Return why an order is not taken; None:
        it is this page's, in a browser that has shown the token.
        """
        shown = session(scope)
        if not self._gate.admits(shown):
            why = "orders are for browsers that have signed in; scripts give them with the command batchd"
            return as_json({"error": why}, 401)
        if not _from_here(headers):
            why = "only this page can give orders; a proxy before it must pass Host and Origin on"
            return as_json({"error": why}, 403)
        given = headers.get(_KEY, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._gate.key(shown).encode()):
            why = "show the token first: this browser has no key for orders, or an old one"
            return as_json({"error": why, "key": "wanted"}, 403)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # Neither can be sent by a form, nor by a script of another origin that does not ask first.
        file = kind == FILE_TYPE and scope["path"] == CONFIRMED and "submit" in self._orders
        if kind != "application/json" and not file:
            return as_json({"error": "orders are JSON"}, 415)
        return None


def _from_here(headers: Headers) -> bool:
    """Return whether a request is from a page of this very address, as its browser says."""
    origins, host = headers.getlist("origin"), headers.get("host", "").lower()
    own = {f"{scheme}://{host}" for scheme in ("http", "https")}
    site = headers.get("sec-fetch-site", "same-origin")
    return len(origins) == 1 and origins[0].lower() in own and site == "same-origin"


async def refused(gate: TokenCheck, headers: Headers) -> Response | None:
    """Return the answer to who shows no token, or a wrong one; None: it is right."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and await gate.knows(given.strip()):
        return None
    return unknown()


def unknown() -> Response:
    """Return the answer to who shows nothing that is good."""
    why = "show the token: Authorization: Bearer …"
    return as_json({"error": why}, 401, {"WWW-Authenticate": "Bearer"})


def as_json(value: object, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer to scripts."""
    return Response(msgspec.json.encode(value), code, headers, "application/json")


def session(scope: Scope) -> str:
    """Return what a browser shows for having been let in before; empty: nothing."""
    # Libraries unquote every cookie: of one of 60 KB, Python 3.11 does so for seconds.
    wanted, found = f"{cookie_name(scope)}=", ""
    for cookie in Headers(scope=scope).get("cookie", "").split(";"):
        if (cookie := cookie.strip()).startswith(wanted):
            found = cookie.removeprefix(wanted)
    return found


def cookie_name(scope: Scope) -> str:
    """Return the cookie's name: browsers keep cookies for a host, whatever the port."""
    server = scope.get("server") or ("", 0)
    return f"batchd-web-{server[1]}"
