"""The door: gives a sandbox its way out before a command enters it,
and takes it away in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from batchd.errors import SandboxError
from batchd.sandbox.network.destinations import AllowedHosts

_LOCAL = ("localhost", "127.0.0.1", "::1")
#: Where commands find the proxy, on their own loopback: the port that such servers have by custom.
PORT = 3128
#: What is kept of what was refused.
_MOST_REFUSALS = 20
#: Longer than any host, of which a part would be no secret any more, though it be one as a whole.
_MOST_NAME = 400


class RefusedHosts:
    """The hosts that a sandbox's proxy refused, each once, and no more than a few."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._others = 0

    def add(self, what: str) -> None:
        """Note a refusal."""
        what = what[:_MOST_NAME]
        if what in self._counts or len(self._counts) < _MOST_REFUSALS:
            self._counts[what] = self._counts.get(what, 0) + 1
        else:
            self._others += 1

    def taken(self) -> tuple[str, ...]:
        """Return a line for each since this was last asked,
        with how often it was if that is not once.
        """
        lines = [f"{what} ({n} times)" if n > 1 else what for what, n in self._counts.items()]
        lines += [f"{self._others} more"] if self._others else []
        self._counts, self._others = {}, 0
        return tuple(lines)


@contextlib.asynccontextmanager
async def opened(
    allowed: AllowedHosts, listening: Callable[[int], Awaitable[socket.socket]]
) -> AsyncIterator[RefusedHosts]:
    """Open the way to these hosts for what runs in a sandbox, and close it again;
    yield what was refused.

    ``listening``: makes a socket on its loopback. Raises ``SandboxError``.
    """
    # Daemons, and workers whose tasks have no list, do without HTTP.
    from batchd.sandbox.network.proxy import Proxy

    try:
        listener = await listening(PORT)
    except OSError as error:
        raise SandboxError(f"a command's way to the network: {error}") from error
    refusals = RefusedHosts()
    serving = asyncio.ensure_future(Proxy(listener, allowed, refusals).serve())
    try:
        yield refusals
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()  # serving may not have begun


def described(allowed: AllowedHosts) -> str:
    """Return the way out in words, for the model."""
    return (
        f"network: only {allowed.listed()}, by HTTP and HTTPS through the proxy in"
        " http_proxy and https_proxy (set); no DNS"
    )


def variables(allowed: AllowedHosts) -> dict[str, str]:
    """Return the variables by which programs find the proxy."""
    proxy = f"http://127.0.0.1:{PORT}"
    names = {host.name for host in allowed.hosts}
    # A command's own servers are reached without it; what the list holds, though, lies outside.
    own = ",".join(name for name in _LOCAL if name not in names)
    found = {name: proxy for word in ("http_proxy", "https_proxy") for name in (word, word.upper())}
    # Node reads them only with NODE_USE_ENV_PROXY.
    return {**found, "no_proxy": own, "NO_PROXY": own, "NODE_USE_ENV_PROXY": "1"}
