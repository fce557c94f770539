"""A webhook: JSON by POST, signed as Standard Webhooks has it.

The signature is over ``ID.TIMESTAMP.BODY``; a retry keeps its id, and has a timestamp of its own.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import time

import aiohttp
import msgspec

from batchd import __version__
from batchd.config import receivers
from batchd.errors import DeliveryError
from batchd.notify.channels.target import ReceiverTarget
from batchd.notify.format import NotificationV1

_PREFIX = "whsec_"
#: Of what a receiver answers, so many bytes are quoted.
_QUOTED = 300
#: Answers in the 400s after which it may work later; all others of them are for good.
_LATER = frozenset({408, 425, 429})


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Post it. Raises ``DeliveryError``."""
    settings, environ = target.settings, target.environ
    url, key = receivers.address(settings, environ), receivers.secret(settings, environ)
    body = msgspec.json.encode(message)
    headers = {
        "content-type": "application/json",
        "user-agent": f"batchd/{__version__}",
        **settings.headers,
        **signed(message.id, int(time.time()), body, key),
    }
    timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # No redirect is followed:
            # it would take the message to an address that is not configured.
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            status, after = answer.status, answer.headers.get("retry-after", "")
            if 200 <= status < 300:  # the range that means success
                return f"HTTP {status}"  # it has it, whatever else it says, or never gets to say
            said = (await answer.content.read(_QUOTED)).decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError) as error:
        raise DeliveryError(f"it cannot be reached: {error}") from None
    why = f"HTTP {status} {said}".strip()
    final = 300 <= status < 500 and status not in _LATER  # redirects, and the caller's faults
    raise DeliveryError(why, final=final, retry_after_s=seconds(after))


def signed(own: str, at: int, body: bytes, key: str) -> dict[str, str]:
    """Return the headers of Standard Webhooks; without a key, those without a signature.

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


def seconds(retry_after: str) -> float:
    """Return a Retry-After, a number of seconds or a date, in seconds; 0 where it says nothing."""
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        at = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, at.timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
