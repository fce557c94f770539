"""Puts a plan on the wire: whole, or broken in the way that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from aiohttp import web

from standin import faults
from standin.dialects import ServedDialect
from standin.exchanges import Exchange
from standin.faults import Fault, HttpRefusal
from standin.planner import AnswerPlan
from standin.simulated_request import Bill, Heading, SimulatedRequest

JSON = "application/json"
#: Faults that leave the answer's body as it is, or send it in full.
_SOUND = frozenset({"", "drip"})


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, ready to be sent."""

    dialect: ServedDialect
    request: SimulatedRequest
    plan: AnswerPlan
    heading: Heading
    bill: Bill
    headers: Mapping[str, str]
    #: Seconds before it.
    pause_s: float

    @property
    def stated(self) -> Bill | None:
        """What it says that it came to."""
        return self.bill if self.plan.usage else None


async def refuse(
    http: web.BaseRequest,
    exchange: Exchange,
    refusal: HttpRefusal,
    body: bytes,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send an error."""
    exchange.status = refusal.status
    reply = web.Response(
        status=refusal.status,
        body=body,
        content_type=JSON,
        headers=headers,
    )
    return await _whole(http, exchange, reply)


def cut(http: web.BaseRequest) -> web.StreamResponse:
    """Close the connection; what was written before still goes out."""
    if http.transport is not None:
        http.transport.close()
    return web.Response()


async def deliver(http: web.BaseRequest, exchange: Exchange, letter: Letter) -> web.StreamResponse:
    """Send an answer as planned. A client that gives up raises ``CancelledError`` here."""
    plan = letter.plan
    if plan.delivery == "hang":
        await asyncio.Event().wait()
    if plan.delivery == "cut":
        return cut(http)
    await asyncio.sleep(letter.pause_s)
    body, content_type = _payload(letter)
    headers = {**letter.headers, "Content-Type": content_type}
    exchange.status = 200
    if exchange.request:
        exchange.answer = body.decode("utf-8", "replace")
    if plan.delivery in _SOUND:
        exchange.settle(letter.stated)
        exchange.finish_reason = plan.answer.finish_reason
    if plan.delivery in {"hang-body", "cut-body", "drip"}:
        return await _badly(http, exchange, plan.delivery, body, headers)
    return await _whole(http, exchange, web.Response(body=body, headers=headers))


def _payload(letter: Letter) -> tuple[bytes, str]:
    """Return an answer's body, and its content type."""
    match letter.plan.delivery:
        case "html":
            return faults.HTML, "text/html"
        case "error-200":
            wrong = letter.dialect.refusal(Fault("error-200"))
            return letter.dialect.error(wrong, letter.heading.id), JSON
        case "failed":
            return letter.request.writer.failed(letter.heading), JSON
        case "no-choices":
            return letter.dialect.nothing, JSON
    body = letter.request.writer.whole(letter.heading, letter.plan.answer, letter.stated)
    return body[: len(body) // 2] if letter.plan.delivery == "broken-json" else body, JSON


async def _whole(
    http: web.BaseRequest, exchange: Exchange, reply: web.StreamResponse
) -> web.StreamResponse:
    """Send the rest of a reply here, and not behind the handler's back:
    the log says what was delivered.
    """
    await reply.prepare(http)
    await reply.write_eof()
    exchange.delivered = True
    return reply


async def _badly(
    http: web.BaseRequest, exchange: Exchange, how: str, body: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send a body with its full length announced, but not at once, or not all of it."""
    reply = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await reply.prepare(http)
    if how == "drip":
        for byte in body:
            await reply.write(bytes([byte]))
            await asyncio.sleep(1)
        return await _whole(http, exchange, reply)
    await reply.write(body[: len(body) // 2])
    if how == "hang-body":
        await asyncio.Event().wait()
    return cut(http)
