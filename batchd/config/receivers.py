"""``[notify.NAME]``: who is notified of what, and how;
with what no single key shows, and the secrets in it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal, TypeAlias, get_args
from urllib.parse import unquote

from annotated_types import Ge, Gt, Le

from batchd import masking
from batchd.config import operator_files
from batchd.config.values import Name, Section
from batchd.errors import NotPossibleError, Problem
from batchd.records.tasks import Amount

#: What a receiver can be notified of.
EventName: TypeAlias = Literal[
    "batch_completed",
    "batch_failed",
    "batch_rejected",
    "budget_reached",
    "provider_parked",
    "provider_resumed",
    "daemon_started",
]
Kind: TypeAlias = Literal["webhook", "command", "apprise"]

#: Letters and digits that are no word: what stands in an address and could be a key.
_KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSection(Section):
    """``[notify.NAME]``: one receiver."""

    kind: Kind
    """By what way; it decides which of the other keys count."""
    on: tuple[EventName, ...] = get_args(EventName)
    """Of what; left out: of all there is."""
    max_per_minute: Annotated[int, Ge(1), Le(1000)] = 10
    """Messages in any minute; what exceeds it comes in one, and to a command one by one, later."""
    timeout_s: Annotated[float, Gt(0), Le(600)] = 30.0
    """What one try may take."""
    give_up_s: Amount = 86_400.0
    """A message that could not be delivered for so long is given up."""
    url: str = field(default="", repr=False)
    """Webhook: the address. Apprise: one or several, as Apprise writes them."""
    url_env: str = ""
    """Or the environment variable that holds it, since many such addresses are secrets."""
    url_file: str = ""
    """Or a file that holds it."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Webhook: sent along."""
    secret_env: str = ""
    """Webhook: the environment variable that holds the key for the signature; neither: unsigned."""
    secret_file: str = ""
    """Webhook: or a file that holds it."""
    command: tuple[Name, ...] = ()
    """Command: the program and its arguments."""


_ADDRESS = ("url", "url_env", "url_file")
#: The keys that each way has of its own.
_OWN: Mapping[Kind, tuple[str, ...]] = {
    "webhook": (*_ADDRESS, "headers", "secret_env", "secret_file"),
    "command": ("command",),
    "apprise": _ADDRESS,
}
_COMMON = ("kind", "on", "max_per_minute", "timeout_s", "give_up_s")


def problems(name: str, receiver: ReceiverSection) -> Iterator[tuple[str, Problem]]:
    """Yield what is wrong with a receiver, each with its key; an empty one means its name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", name, re.ASCII):
        yield "", Problem("", "a name has at most 64 letters, digits, _ and -")
    defaults = {f.name: f.default for f in fields(ReceiverSection)} | {"headers": {}}
    for other in sorted(defaults.keys() - {*_COMMON, *_OWN[receiver.kind]}):
        if getattr(receiver, other) != defaults[other]:
            what = f"kind {receiver.kind!r} has no such key"
            yield other, Problem("", what, f"it has {', '.join(_OWN[receiver.kind])}")
    if receiver.kind == "command":
        if not receiver.command:
            yield (
                "command",
                Problem("", "this key is needed", 'as in ["/usr/local/bin/page", "me"]'),
            )
        return
    if sum(bool(getattr(receiver, key)) for key in _ADDRESS) != 1:
        fix = "set url, url_env or url_file"
        yield "url", Problem("", "it has no address, or more than one", fix)
    if receiver.kind == "webhook" and receiver.url and not is_address(receiver.url):
        yield "url", Problem("", "it must be http(s)://HOST[:PORT]/PATH, without user or password")


def is_address(url: str) -> bool:
    """Return whether something is the address of a webhook."""
    return bool(re.fullmatch(r"https?://[^\s/@?#]+([/?]\S*)?", url)) and url.isascii()


# Secrets


def secret(receiver: ReceiverSection, environ: Mapping[str, str]) -> str:
    """Return the key for signatures, read now; empty: none. Raises ``NotPossibleError``."""
    if not (receiver.secret_env or receiver.secret_file):
        return ""
    return _read("the key for signatures", receiver.secret_env, receiver.secret_file, environ)


def address(receiver: ReceiverSection, environ: Mapping[str, str]) -> str:
    """Return where a webhook or an Apprise service is, read now. Raises ``NotPossibleError``."""
    if receiver.url:
        return receiver.url
    url = _read("the address", receiver.url_env, receiver.url_file, environ)
    if receiver.kind == "webhook" and not is_address(url):
        place = receiver.url_env or receiver.url_file
        raise NotPossibleError(f"{place} holds no address of a webhook: http(s)://HOST[:PORT]/PATH")
    return url


def hidden(receiver: ReceiverSection, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what no text may show, as far as it can be had now."""
    with contextlib.suppress(NotPossibleError):
        yield secret(receiver, environ)
    yield from masking.named(receiver.headers)
    try:
        url = address(receiver, environ)
    except NotPossibleError:
        return
    yield url
    least = _KEY_LENGTH if receiver.url else masking.MIN_SECRET_CHARS
    for part in re.split(r"[\s/:@?&=,]+", url):
        if len(part) >= least and masking.looks(part):
            yield part
    # A password is one, though it be made of words.
    passwords = re.findall(r"://[^\s/:@]*:([^\s/?#]+)@", url)
    for name, value in re.findall(r"[?&]([^\s=&]+)=([^\s&]+)", url):
        if name == "pass" or masking.names_secret(name):
            passwords.append(value)
    for password in passwords:
        yield from (password, unquote(password))


def _read(what: str, env: str, file: str, environ: Mapping[str, str]) -> str:
    value, place = operator_files.secret(what, file=file, env=env, environ=environ)
    if not value:
        raise NotPossibleError(f"{what} is missing: set {place}")
    return value
