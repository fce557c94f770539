"""The ways to a receiver: each a module with ``send``,
which tries once, and loads what it needs only then.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import shutil
from collections.abc import Iterator

from batchd import installation
from batchd.actions import Action
from batchd.config import Config, receivers
from batchd.errors import DeliveryError, NotPossibleError
from batchd.log import escape, get_logger
from batchd.notify.channels.target import ReceiverTarget, targets
from batchd.notify.format import NotificationV1

__all__ = ["ReceiverTarget", "insist", "problems", "send", "targets"]

#: What says why something failed is no longer than this.
_MAX_CAUSE_CHARS = 500
_INSTALL = "install it: "


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Bring a message to its receiver, in one try; return what came back.

    Raises ``DeliveryError``.
    """
    settings = target.settings
    module = f"batchd.notify.channels.{settings.kind}_channel"
    # A command's channel keeps to it by itself, and reports what the command had to say until then;
    # so does that of mails, whose server may be slow once it has one.
    limit_s = None if settings.kind in {"command", "email"} else settings.timeout_s
    try:
        async with asyncio.timeout(limit_s):
            channel = importlib.import_module(module)
            answer: str = await channel.send(target, message)
    except TimeoutError:
        raise DeliveryError(f"no answer within {settings.timeout_s:g} s") from None
    except NotPossibleError as error:
        # A secret that is not there: it may come.
        raise DeliveryError(target.masker.text(str(error))) from None
    except DeliveryError as error:
        text = escape(target.masker.text(str(error)))[:_MAX_CAUSE_CHARS]
        raise DeliveryError(text, final=error.final, retry_after_s=error.retry_after_s) from None
    except Exception as error:
        # What a library, or a plugin of it, throws is this receiver's trouble alone.
        text = escape(target.masker.text(f"{type(error).__name__}: {error}"))[:_MAX_CAUSE_CHARS]
        raise DeliveryError(text) from error
    return escape(target.masker.text(answer))[:_MAX_CAUSE_CHARS]


def insist(config: Config) -> None:
    """Warn of what would keep messages from their receivers.

    Raises ``NotPossibleError`` where a package is missing.
    """
    for target in targets(config):
        for what, fix in problems(target):
            if fix.startswith(_INSTALL):
                raise NotPossibleError(f"[notify.{target.name}]: {what}; {fix}")
            get_logger(receiver=target.name).warning(Action.NOTIFY_FAILED, message=what, mend=fix)


def problems(target: ReceiverTarget) -> Iterator[tuple[str, str]]:
    """Yield what would keep every message from its receiver, with the fix. Sends nothing."""
    settings, environ = target.settings, target.environ
    try:
        if settings.kind == "email" and settings.user:
            receivers.password(settings, environ)
        if settings.kind in {"webhook", "apprise"}:
            receivers.address(settings, environ)
        if settings.kind == "webhook":
            receivers.secret(settings, environ)
    except NotPossibleError as error:
        yield str(error), f"see [notify.{target.name}]"
    if settings.kind == "command" and shutil.which(settings.command[0]) is None:
        yield (
            f"{settings.command[0]} is not a program that batchd can run",
            f"set [notify.{target.name}] command",
        )
    if settings.kind == "apprise" and importlib.util.find_spec("apprise") is None:
        yield "the package apprise is not installed", f"{_INSTALL}{installation.fix('apprise')}"
