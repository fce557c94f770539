"""What stands before every request: which names, which methods, who may look; and the headers of every answer."""

from __future__ import annotations

from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchd.records import hosts
from batchd.web.gate import Gate

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


class Shield:
    """Lets through what may pass. An ASGI application around another."""

    def __init__(self, app: ASGIApp, *, gate: Gate, names: Sequence[str], login: str) -> None:
        """``names``: those beside addresses and localhost; ``login``: what browsers are shown first."""
        self._app = app
        self._gate = gate
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


async def refused(gate: Gate, headers: Headers) -> Response | None:
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
