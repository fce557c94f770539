"""``[web]``: the page that `batchd web` shows, and who may look at it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchd.config import operator_files
from batchd.config.values import Name, Section, loopback
from batchd.errors import NotPossibleError, Problem

_HIGHEST_PORT = 65535
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


def parted(listen: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``. Raises ``ValueError``."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})", listen)
    if found is None or int(found[2]) > _HIGHEST_PORT:
        raise ValueError(listen)
    return found[1].strip("[]"), int(found[2])


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
    if not re.fullmatch(r"([A-Za-z_]\w*)?", web.token_env, re.ASCII):
        # Not quoted: it may be the token itself, put into the wrong place.
        what = "it must be the name of an environment variable, which holds the token"
        yield ("web", "token_env"), Problem("", what)
