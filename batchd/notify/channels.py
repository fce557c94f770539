"""The ways to a receiver: a webhook, a command, and all that Apprise can reach."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import http.client
import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import msgspec

from batchd import installation, masking
from batchd.config import Config
from batchd.config.sections import ReceiverSection, loopback
from batchd.errors import DeliveryError, NotPossibleError, SandboxError
from batchd.log import Action, escape, get_logger
from batchd.masking import Masker, names_secret
from batchd.notify.format import NotificationV1
from batchd.pauses import aside
from batchd.sandbox import command_run, launch
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.output import CommandOutput
from batchd.version import __version__

if TYPE_CHECKING:
    from apprise import NotifyBase

#: What says why something failed is no longer than this.
_MAX_CAUSE_CHARS = 500
#: Of what a receiver answers, and a command prints, so many bytes are quoted.
_QUOTED = 300
_OUTPUT_BYTES = 1024
_INSTALL = "install it: "
#: Answers in the 400s after which a webhook may work later; all others of them are for good.
_LATER = frozenset({408, 425, 429})
#: Begins a key for signatures that is base64.
_PREFIX = "whsec_"
#: A shell's words for what cannot be run, and what is not there.
_NOT_RUN = {126, 127}
#: A command has the message in variables too; a text of more bytes would not fit into one.
_MAX_VARIABLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverTarget:
    """A receiver, with what it takes to reach it."""

    #: As ``[notify.NAME]`` has it.
    name: str
    settings: ReceiverSection
    #: Where secrets are read from, at each try.
    environ: Mapping[str, str] = field(repr=False)
    #: Knows what no text may show.
    masker: Masker = field(compare=False, repr=False)


def targets(config: Config) -> Iterator[ReceiverTarget]:
    """Yield all receivers of a configuration."""
    masker = Masker(config.hidden())
    for name, settings in config.notify.items():
        yield ReceiverTarget(name=name, settings=settings, environ=config.environ, masker=masker)


def insist(config: Config) -> None:
    """Warn of what would keep messages from their receivers.

    Raises ``NotPossibleError`` where a package is missing.
    """
    for target in targets(config):
        for what, fix in problems(target, quick=True):
            if fix.startswith(_INSTALL):
                raise NotPossibleError(f"[notify.{target.name}]: {what}; {fix}")
            get_logger(receiver=target.name).warning(Action.NOTIFY_FAILED, message=what, mend=fix)


def problems(target: ReceiverTarget, *, quick: bool = False) -> Iterator[tuple[str, str]]:
    """Yield what would keep every message from its receiver, with the fix. Sends nothing.

    ``quick``: without what Apprise says of an address, for it takes a second to load.
    """
    settings = target.settings
    missing = settings.kind == "apprise" and importlib.util.find_spec("apprise") is None
    try:
        if settings.kind != "command":
            url = settings.address(target.environ)
            if settings.kind == "webhook":
                _insist_on_https(settings, url)
            elif not (missing or quick):
                _apprise(url)
        settings.secret(target.environ)
    except (DeliveryError, NotPossibleError) as error:
        yield escape(target.masker.text(str(error))), f"see [notify.{target.name}]"
    if settings.kind == "command" and shutil.which(settings.command[0]) is None:
        yield (
            f"{settings.command[0]} is not a program that batchd can run",
            f"set [notify.{target.name}] command",
        )
    if missing:
        yield "the package apprise is not installed", f"{_INSTALL}{installation.fix('apprise')}"


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Bring a message to its receiver, in one try; return what came back.

    What blocks does so in a thread that nobody waits for: a name server may be silent for long.
    Raises ``DeliveryError``.
    """
    settings, environ = target.settings, target.environ
    try:
        if settings.kind == "command":
            answer = await _run(target, message)
        else:
            url = settings.address(environ)
            if settings.kind == "webhook":
                key = settings.secret(environ)
                work = partial(_post, settings, url, key, message)
            else:
                work = partial(_apprise, url, message)
            async with asyncio.timeout(settings.timeout_s):
                answer = await aside(work, "notify")
    except TimeoutError:
        raise DeliveryError(f"no answer within {settings.timeout_s:g} s") from None
    except Exception as error:
        # A secret that is not there may come; and what a library, or a plugin of it, throws is
        # this receiver's trouble alone.
        known = isinstance(error, DeliveryError | NotPossibleError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        text = escape(target.masker.text(why))[:_MAX_CAUSE_CHARS]
        if isinstance(error, DeliveryError):
            raise DeliveryError(text, final=error.final) from None
        raise DeliveryError(text) from error
    return escape(target.masker.text(answer))[:_MAX_CAUSE_CHARS]


# Webhooks: JSON by POST, signed as Standard Webhooks has it


def _insist_on_https(settings: ReceiverSection, url: str) -> None:
    """Raise ``DeliveryError`` where a secret header would travel in the open."""
    parts = urlsplit(url)
    if (
        parts.scheme == "http"
        and not loopback(parts.hostname or "")
        and any(masking.named(settings.headers))
    ):
        why = "a secret in headers would travel in the open: write https:// in its address"
        raise DeliveryError(why, final=True)


def _post(settings: ReceiverSection, url: str, key: str, message: NotificationV1) -> str:
    _insist_on_https(settings, url)
    body = msgspec.json.encode(message)
    headers = {
        "content-type": "application/json",
        "user-agent": f"batchd/{__version__}",
        **settings.headers,
        **signed(message.id, int(time.time()), body, key),
    }
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=settings.timeout_s)
    try:
        # No redirect is followed: it would take the message to an address that is not configured.
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        if 200 <= answer.status < 300:  # the range that means success
            return f"HTTP {answer.status}"  # whatever else it says, or never gets to say
        said = answer.read(_QUOTED).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryError(f"it cannot be reached: {error}") from None
    finally:
        connection.close()
    # Redirects, and the caller's faults.
    final = 300 <= answer.status < 500 and answer.status not in _LATER
    raise DeliveryError(f"HTTP {answer.status} {said}".strip(), final=final)


def signed(own: str, at: int, body: bytes, key: str) -> dict[str, str]:
    """Return the headers of Standard Webhooks; without a key, those without a signature.

    It is over ``ID.TIMESTAMP.BODY``; a retry keeps its id, and has a timestamp of its own.
    ``key``: ``whsec_`` and base64, or any text, whose bytes are then the key.
    Raises ``DeliveryError``: what follows ``whsec_`` is no base64.
    """
    headers = {"webhook-id": own, "webhook-timestamp": str(at)}
    if key:
        try:
            raw = key.encode()
            if key.startswith(_PREFIX):
                raw = base64.b64decode(key.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            text = "the key for signatures is not base64 after whsec_"
            raise DeliveryError(text, final=True) from None
        digest = hmac.new(raw, f"{own}.{at}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


# Apprise: mail, chats, phones, pagers


def _apprise(urls: str, message: NotificationV1 | None = None) -> str:
    """Bring a message to services; without one, only look at their addresses."""
    try:
        import apprise  # 38 MB, and it may not be installed
    except ImportError:
        missing = f"the package apprise is not installed: {installation.fix('apprise')}"
        raise DeliveryError(missing, final=True) from None
    # Its own lines stand in ours: once, not at every try.
    logging.getLogger("apprise").propagate = False
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:  # type: ignore[no-untyped-call]
        # A redirect would take the message to an address that is not configured.
        services = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
        known = services.add(urls) and len(services)
        written = zip(services, services.urls(), services.urls(privacy=True), strict=True)
        unsafe = next(filter(None, (_unsafe(one, url, shown) for one, url, shown in written)), "")
        text = apprise.NotifyFormat.TEXT
        taken = message is None or (
            known
            and not unsafe
            and services.notify(body=message.text, title=message.subject, body_format=text)
        )
        said = "; ".join(dict.fromkeys(filter(None, log.getvalue().splitlines())))
    if not known:
        raise DeliveryError(f"Apprise knows no such address: {said}", final=True)
    if unsafe:
        raise DeliveryError(unsafe, final=True)
    if not taken:
        raise DeliveryError(said or "a service did not take it")
    return f"{len(services)} taken"


def _unsafe(service: NotifyBase, url: str, shown: str) -> str:
    """Return how an address gives away a message or a password, with the fix.

    ``url``: as Apprise understands it, for some services are encrypted by either of their schemes;
    ``shown``: without its secrets.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    host = options.get("smtp") or parts.hostname or ""
    if service.redirects:
        return f"{parts.scheme} would follow redirects: take redirect=yes out of its address"
    if not service.verify_certificate:
        return f"{parts.scheme} would believe any certificate: take verify=no out of its address"
    bare = bool(service.secure_protocol) and parts.scheme in (service.protocol or "")
    # "+": a header.
    secret = url != shown or any(name[:1] == "+" and names_secret(name) for name in options)
    if secret and not loopback(host) and (bare or options.get("mode") == "insecure"):
        fix = f"begin its address with {parts.scheme.removesuffix('s')}s://"
        return f"its password would travel in the open: {fix}, without mode=insecure"
    return ""


# Commands of the operator's


async def _run(target: ReceiverTarget, message: NotificationV1) -> str:
    """Run a command as batchd's user, outside of the sandbox, with the message as JSON on its
    standard input. Nothing that it started outlives it, or its time limit, or the daemon.
    """
    settings = target.settings
    argv = [os.fsencode(word) for word in settings.command]
    # batchd's own environment without secrets, and the message in short.
    hidden = {name for name, value in os.environ.items() if target.masker.text(value) != value}
    kept = {k: v for k, v in os.environ.items() if k not in hidden and not names_secret(k)}
    first = message.events[0]
    env = {
        **kept,
        "BATCHD_RECEIVER": target.name,
        "BATCHD_NOTIFICATION": message.id,
        "BATCHD_EVENT": ",".join(sorted({event.event for event in message.events})),
        "BATCHD_BATCH": first.batch.name if len(message.events) == 1 and first.batch else "",
        "BATCHD_SUBJECT": message.subject,
        "BATCHD_TEXT": message.text.encode()[:_MAX_VARIABLE_BYTES].decode(errors="ignore"),
    }
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def start(stdin: int | None, output: int) -> ChildProcess:
        return launch.plain(root, env, argv, stdin=stdin, output=output)

    try:
        ran = await command_run.run(
            start,
            stdin=msgspec.json.encode(message),
            timeout_s=settings.timeout_s,
            output=CommandOutput(_OUTPUT_BYTES, target.masker),
        )
    except SandboxError as error:
        raise DeliveryError(str(error)) from None
    finally:
        os.close(root)
    said = " ".join(ran.output.split())
    if ran.exit_code is None:
        raise DeliveryError(f"killed after {settings.timeout_s:g} s: {said}")
    outcome = f"exit code {ran.exit_code}" + (f": {said}" if said else "")
    if ran.exit_code:
        raise DeliveryError(outcome, final=ran.exit_code in _NOT_RUN)
    return outcome
