"""E-mail, over SMTP."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP

import aiosmtplib

from batchd.config import receivers
from batchd.errors import DeliveryError
from batchd.notify.channels.target import ReceiverTarget
from batchd.notify.format import NotificationV1

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
#: Answers from here on are for good.
_PERMANENT = 500
#: How long a server may take to say goodbye.
_GOODBYE_S = 2.0


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Hand it to the server. Raises ``DeliveryError``."""
    settings = target.settings
    password = receivers.password(settings, target.environ) if settings.user else None
    client = aiosmtplib.SMTP(
        hostname=settings.host,
        port=settings.port or _PORTS[settings.tls],
        use_tls=settings.tls == "tls",
        start_tls=settings.tls == "starttls",
        timeout=settings.timeout_s,
        username=settings.user or None,
        password=password,
    )
    try:
        async with asyncio.timeout(settings.timeout_s):
            await client.connect()
            refused, said = await client.send_message(mail(target, message))
        await _leave(client)
    except TimeoutError:
        raise DeliveryError(f"no answer within {settings.timeout_s:g} s") from None
    except aiosmtplib.SMTPRecipientsRefused as error:
        refusals = "; ".join(
            f"{each.recipient}: {each.code} {each.message}" for each in error.recipients
        )
        final = all(each.code >= _PERMANENT for each in error.recipients)
        raise DeliveryError(refusals, final=final) from None
    except aiosmtplib.SMTPResponseException as error:
        raise DeliveryError(
            f"{error.code} {error.message}", final=error.code >= _PERMANENT
        ) from None
    except aiosmtplib.SMTPNotSupported as error:
        raise DeliveryError(f"the server cannot do what is asked: {error}", final=True) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise DeliveryError(f"it cannot be reached: {error}") from None
    finally:
        client.close()
    refusals = "; ".join(f"{who} refused: {why.code} {why.message}" for who, why in refused.items())
    return f"250 {said} ({refusals})" if refusals else f"250 {said}"


async def _leave(client: aiosmtplib.SMTP) -> None:
    """Say goodbye; the server has the mail, whatever it answers now, or does not."""
    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
        await client.quit(timeout=_GOODBYE_S)


def mail(target: ReceiverTarget, message: NotificationV1) -> EmailMessage:
    """Return a message as a mail; a retry has the same Message-ID,
    so that duplicates are recognised.
    """
    settings = target.settings
    made = EmailMessage(SMTP)
    made["From"] = settings.sender
    made["To"] = ", ".join(settings.to)
    made["Subject"] = message.subject
    made["Date"] = email.utils.format_datetime(datetime.fromisoformat(message.at))
    domain = email.utils.parseaddr(settings.sender)[1].rpartition("@")[2]
    made["Message-ID"] = f"<{message.id}.{target.name}@{domain}>"
    made["Auto-Submitted"] = "auto-generated"
    made["X-Batchd-Events"] = ", ".join(sorted({event.event for event in message.events}))
    made.set_content(message.text)
    return made
