"""A line that somebody sends becomes the answer to it:
what both of the daemon's sockets have in common.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from batchd import __version__
from batchd.actions import Action
from batchd.control import coding
from batchd.control.requester import Requester
from batchd.control.requests import A, ControlRequest
from batchd.errors import BatchdError, UsageError
from batchd.log import get_logger

#: Characters of what a giver says of whom it asks for.
_VIA = 200


class RequestHandlers(Protocol):
    """What carries requests out: one handler for each kind."""

    async def carry_out(self, request: ControlRequest[A], by: Requester, /) -> A:
        """Do what is asked, and return the answer. Raises ``BatchdError``."""

    def malformed(
        self,
        kind: type[ControlRequest[Any]],
        given: Mapping[str, Any],
        by: Requester,
        error: BatchdError,
        /,
    ) -> None:
        """Take note of a request of a kind that is refused for its fields."""


async def answered(
    line: bytes, by: Requester, commands: RequestHandlers, verbs: Collection[str]
) -> bytes:
    """Return the answer to a line, as a line. ``verbs``: those that its sender may use."""
    # After an upgrade, who asks may be of another version.
    answer = {**await _answer(line, by, commands, verbs), "batchd": __version__}
    return json.dumps(answer).encode() + b"\n"


def refused(error: str, exit_code: int = UsageError.exit_code) -> bytes:
    """Return a refusal, as a line."""
    return json.dumps({**_refusal(error, exit_code), "batchd": __version__}).encode() + b"\n"


async def _answer(
    line: bytes, by: Requester, commands: RequestHandlers, verbs: Collection[str]
) -> Mapping[str, Any]:
    try:
        given = json.loads(line)
        kind = coding.REQUESTS[given["verb"]]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return _refusal(f"not a request; the verbs are {', '.join(sorted(verbs))}")
    if isinstance(via := given.get("via"), str):
        by = replace(by, via=via[:_VIA])
    try:
        return {"ok": True, **await _carried_out(kind, given, by, commands)}
    except BatchdError as error:
        return _refusal(str(error), error.exit_code)
    except Exception:  # noqa: BLE001 (a bug in a command must not hang who asks, nor end the daemon)
        get_logger().exception(Action.COMMAND_REFUSED)
        return _refusal("an error inside batchd; the daemon's log has the details", 1)


async def _carried_out(
    kind: type[ControlRequest[Any]],
    given: Mapping[str, Any],
    by: Requester,
    commands: RequestHandlers,
) -> dict[str, Any]:
    """Carry a request out; return the answer's fields. Raises ``BatchdError``."""
    try:
        request = coding.request(kind, given)
    except UsageError as error:
        commands.malformed(kind, coding.known(kind, given), by, error)
        raise
    return coding.fields(await commands.carry_out(request, by))


def _refusal(error: str, exit_code: int = UsageError.exit_code) -> dict[str, Any]:
    return {"ok": False, "error": error, "exit_code": exit_code}


async def line_of(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next whole line; None at the end, empty where it is too long."""
    try:
        line = await reader.readline()
    except ValueError:
        return b""
    # What was cut off in the middle was not meant.
    return line if line.endswith(b"\n") else None


def peer(sock: socket.socket, *, member: bool = False) -> Requester:
    """Return who is at the other end, as the kernel knows them.

    ``member``: they came by the group's socket.
    """
    form = struct.Struct("3i")
    pid, uid, _ = form.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
    return Requester(uid, pid, sock, member=member)
