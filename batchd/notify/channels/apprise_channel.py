"""Everything that Apprise can reach: chats, phones, pagers. An extra, ``apprise``."""

from __future__ import annotations

import asyncio
import logging

from batchd import installation
from batchd.config import receivers
from batchd.errors import DeliveryError
from batchd.notify.channels.target import ReceiverTarget
from batchd.notify.format import NotificationV1


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Hand it to Apprise, in a thread, for its services block. Raises ``DeliveryError``."""
    urls = receivers.address(target.settings, target.environ)
    return await asyncio.to_thread(_send, urls, message.subject, message.text)


def _send(urls: str, subject: str, text: str) -> str:
    try:
        import apprise  # 38 MB, and it may not be installed
    except ImportError:
        missing = f"the package apprise is not installed: {installation.fix('apprise')}"
        raise DeliveryError(missing, final=True) from None
    # Its own lines stand in ours: once, not at every try.
    logging.getLogger("apprise").propagate = False
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:  # type: ignore[no-untyped-call]
        services = apprise.Apprise()
        if not services.add(urls) or not len(services):
            why = "Apprise knows no such address"
            raise DeliveryError(f"{why}: {_said(log.getvalue())}", final=True)
        sent = services.notify(body=text, title=subject, body_format=apprise.NotifyFormat.TEXT)
        if not sent:
            raise DeliveryError(_said(log.getvalue()) or "a service did not take it")
    return f"{len(services)} taken"


def _said(log: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, log.splitlines())))
