"""What stands before every request: which names, which methods,
who may look or order; and the headers of every answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchd.records import hosts
from batchd.web.authentication import TokenCheck

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


class RequestShield:
    """Lets through what may pass. An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: TokenCheck,
        names: Sequence[str],
        login: str,
        orders: bool = False,
    ) -> None:
        """``names``: those beside addresses and localhost;
        ``login``: what browsers are shown first.
        """
        self._app = app
        self._gate = gate
        # Where all look without a token, none is known who could give any.
        self._orders = orders and not gate.open
        self._hosts = {"localhost", *(name.lower().rstrip(".") for name in names)}
        self._login = login

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
        if len(named) != 1 or not hosts.means(named[0], self._hosts):
            why = "this name is not known here: use the address or localhost, or name it in [web] hosts"
            return JSONResponse({"error": why}, 421)
        if self._orders and scope["method"] == "POST" and scope["path"] in {ASKED, CONFIRMED}:
            return self._misgiven(scope, headers)
        if scope["method"] not in {"GET", "HEAD"}:
            why = "this page only shows; orders are given with the command batchd"
            return JSONResponse({"error": why}, 405, {"Allow": "GET, HEAD"})
        if self._gate.open or scope["path"].startswith(_FREE):
            return None
        if "authorization" in headers:
            return await refused(self._gate, headers)
        if self._gate.admits(session(scope, headers)):
            return None
        if "text/html" in headers.get("accept", ""):
            return Response(self._login, 401, {"WWW-Authenticate": "Bearer"}, "text/html")
        return unknown()

    def _misgiven(self, scope: Scope, headers: Headers) -> Response | None:
        """Return why an order is not taken; None:
        it is this page's, in a browser that has shown the token.
        """
        shown = session(scope, headers)
        if not self._gate.admits(shown):
            why = "orders are for browsers that have signed in; scripts give them with the command batchd"
            return JSONResponse({"error": why}, 401)
        if not _from_here(headers):
            why = "only this page can give orders; a proxy before it must pass Host and Origin on"
            return JSONResponse({"error": why}, 403)
        given = headers.get(_KEY, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._gate.key(shown).encode()):
            why = "show the token first: this browser has no key for orders, or an old one"
            return JSONResponse({"error": why, "key": "wanted"}, 403)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return (
            None if kind == "application/json" else JSONResponse({"error": "orders are JSON"}, 415)
        )


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
    return JSONResponse({"error": why}, 401, {"WWW-Authenticate": "Bearer"})


def session(scope: Scope, headers: Headers) -> str:
    """Return what a browser shows for having been let in before; empty: nothing."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(cookie_name(scope))
    return found.value if found else ""


def cookie_name(scope: Scope) -> str:
    """Return the cookie's name: browsers keep cookies for a host, whatever the port."""
    server = scope.get("server") or ("", 0)
    return f"batchd-web-{server[1]}"
