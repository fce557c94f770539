"""``[web]``: the page that `batchd web` shows, and who may look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchd.config import operator_files
from batchd.config.values import Name, Section, loopback, parted
from batchd.errors import NotPossibleError, Problem

#: Characters of a token that cannot be guessed.
_MIN_TOKEN_CHARS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSection(Section):
    """``[web]``: the page of `batchd web`."""

    listen: Name = "127.0.0.1:8040"
    """``HOST:PORT``. An address that other machines reach wants a token of yours."""
    token_env: str = ""
    """The environment variable that holds the token.

    Neither this nor a file: one is made, in the state directory.
    """
    token_file: str = ""
    """Or a file that holds it; a relative one is looked for among systemd's credentials first."""
    open: bool = False
    """On loopback, let every user of this machine look, without a token."""
    orders: bool = False
    """Whether browsers that have shown the token may cancel, pause, resume and retry."""
    hosts: tuple[Name, ...] = ()
    """Names that browsers may use for it beside addresses and localhost:
    of a proxy before it, for example.
    """

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen, as sockets want it."""
        return parted(self.listen)

    def token(self, environ: Mapping[str, str]) -> str:
        """Return the token that was configured, read now; empty where none was.

        Raises ``NotPossibleError``.
        """
        if not (self.token_file or self.token_env):
            return ""
        token, place = operator_files.secret(
            "[web]: the token", file=self.token_file, env=self.token_env, environ=environ
        )
        if len(token) < _MIN_TOKEN_CHARS or not (
            token.isascii() and token.isprintable() and " " not in token
        ):
            raise NotPossibleError(
                f"[web]: {place} holds no token: one word of {_MIN_TOKEN_CHARS} characters of ASCII or more, "
                "as `openssl rand -hex 32` prints one"
            )
        return token


def problems(web: WebSection) -> Iterator[tuple[tuple[str, str], Problem]]:
    """Yield what is wrong with addresses and names, each with its place."""
    try:
        host, _ = web.address
    except ValueError:
        yield ("web", "listen"), Problem("", "it must be HOST:PORT", "as in 127.0.0.1:8040")
    else:
        if web.open and not loopback(host):
            what = "everybody may look without a token on loopback only"
            yield ("web", "open"), Problem("", what, "leave it out, and name a token_file")
    if web.orders and web.open:
        what = "orders are for those who know the token, and open = true asks for none"
        yield ("web", "orders"), Problem("", what, "leave one of the two out")
