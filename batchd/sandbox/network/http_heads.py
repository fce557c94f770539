"""Heads of HTTP messages, read with h11 and written again:
what two readers might understand differently is refused.

A request is passed on as its parts say, not as its bytes stood, so that the server reads what was
checked here. h11 reads what HTTP's grammar allows, and some of what it only tolerates;
that is refused here, before (``_plain``) or after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from batchd.errors import BatchdError
from batchd.records.addresses import Address
from batchd.records.hosts import authority

#: The longest head of a request, and of an answer (bytes).
MOST_REQUEST, MOST_ANSWER = 1 << 15, 1 << 17
_MOST_LINE = 1 << 13
_MOST_FIELDS = 100
_MOST_DIGITS = 18
#: Above, a status is none.
_MOST_STATUS = 599
_BAD, _LONG_LINE, _LONG_HEAD, _VERSION = 400, 414, 431, 505

#: No part of any line; h11 takes most of them in values,
#: and goes back and forth over a row of spaces before the others.
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\r\n"})
_URI = re.compile(rb"[hH][tT][tT][pP]://([^/?#\\]+)((?:/[^?#\\]*)?(?:\?[^#\\]*)?)")
#: What concerns this connection, and not the next one; ``Expect`` is answered here.
_HOP = frozenset(
    {
        *(b"connection", b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"upgrade"),
    }
)
#: What says where a message goes and where it ends: written by us.
_OURS = _HOP | {b"content-length", b"host", b"transfer-encoding"}

_NO_REQUEST, _NO_ANSWER = "this is not an HTTP request", "the server does not answer in HTTP/1.1"
#: What h11 takes answers to be answers to: of a request it only counts whether that was HEAD.
_ASKED, _BARE = (
    h11.Request(method=method, target=b"/", headers=[(b"Host", b"-")])
    for method in (b"GET", b"HEAD")
)

#: As they were written, in their order.
_Fields = list[tuple[bytes, bytes]]


class HeadError(BatchdError):
    """The head of a message is not acceptable."""

    def __init__(self, why: str, status: int = _BAD) -> None:
        super().__init__(why)
        #: What the sender is answered.
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request to the proxy."""

    host: str | Address
    port: int
    #: Whether it asks for a tunnel.
    tunnel: bool
    #: What the server is sent; a tunnel has none.
    head: bytes = b""
    #: The body's length; None where it comes in chunks.
    length: int | None = 0
    #: Whether the sender waits for a word before it sends the body.
    waits: bool = False
    #: Whether the answer has no body whatever it says.
    bare: bool = False

    @property
    def target(self) -> str:
        """The host and port, for people."""
        name = str(self.host)
        return f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"


def request(raw: bytes) -> RequestHead:
    """Return the request whose head, with the empty line, is ``raw``. Raises ``HeadError``."""
    if raw.find(b"\r\n") > _MOST_LINE:
        raise HeadError("the request line is too long", _LONG_LINE)
    _plain(raw)
    lower = raw.lower()
    hosted = b"\r\nhost:" in lower
    # h11 insists on a Host field, and a proxy's clients may leave it out:
    # the request line says where it goes.
    whole = raw if hosted else raw.replace(b"\r\n", b"\r\nHost: -\r\n", 1)
    reader = h11.Connection(h11.SERVER)
    event = _event(reader, whole, _NO_REQUEST)
    if not isinstance(event, h11.Request):
        raise HeadError(_NO_REQUEST)
    if not event.http_version.startswith(b"1."):
        raise HeadError("this proxy speaks HTTP/1.1", _VERSION)
    # h11 takes two fields, or "5, 5", for one length where they agree.
    _, *lengths = lower.split(b"\r\ncontent-length:")
    if len(lengths) > 1 or (lengths and b"," in lengths[0].partition(b"\r\n")[0]):
        raise HeadError("it is not clear how long the body is")
    fields = event.headers.raw_items()[not hosted :]
    if event.method == b"CONNECT":
        return _tunnel(event, fields)
    return _forwarded(event, fields, waits=reader.they_are_waiting_for_100_continue)


def _plain(raw: bytes) -> None:
    """Refuse lines that somebody might take for other ones. Raises ``HeadError``."""
    lines = raw.count(b"\r\n")
    if lines != raw.count(b"\r") or lines != raw.count(b"\n"):
        raise HeadError("a line does not end with CR and LF")
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        raise HeadError("a line holds a control character")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise HeadError("a line begins with a space")
    if lines > _MOST_FIELDS + 2:
        raise HeadError(f"it has more than {_MOST_FIELDS} header fields", _LONG_HEAD)


def _event(reader: h11.Connection, raw: bytes, otherwise: str) -> object:
    """Return what h11 reads in a head.

    Raises ``HeadError`` with ``otherwise``, and what is wrong.
    """
    reader.receive_data(raw)
    try:
        return reader.next_event()
    except h11.RemoteProtocolError as error:
        # What was sent stands behind the words; it may be secret.
        why = str(error).partition(": b")[0]
        raise HeadError(f"{otherwise}: {why}", error.error_status_hint) from None


def _said(fields: _Fields) -> dict[bytes, bytes]:
    """Return what fields say, by their names in lower case;
    that those which frame a message come once is seen to.
    """
    return {key.lower(): value for key, value in fields}


def _place(text: bytes, default: int | None) -> tuple[str | Address, int]:
    try:
        host, port = authority(text.decode("latin-1"))
    except ValueError:
        host, port = "", None
    port = port or default
    if not host or port is None:
        raise HeadError("it names no host and port" if default is None else "it names no host")
    return host, port


def _tunnel(event: h11.Request, fields: _Fields) -> RequestHead:
    host, port = _place(event.target, None)
    said = _said(fields)
    # A server that counts a body here and one that does
    # not would differ on where the tunnel begins.
    if b"transfer-encoding" in said or said.get(b"content-length", b"0") != b"0":
        raise HeadError("CONNECT has no body")
    return RequestHead(host=host, port=port, tunnel=True)


def _forwarded(event: h11.Request, fields: _Fields, *, waits: bool) -> RequestHead:
    uri = _URI.fullmatch(event.target)
    if uri is None:
        raise HeadError("this is a proxy: it takes CONNECT, and http:// addresses")
    host, port = _place(uri[1], 80)
    said = _said(fields)
    named = said.get(b"host", uri[1])
    if named != uri[1] and _place(named, 80) != (host, port):
        raise HeadError("the Host field names another host than the request line")
    modern = event.http_version != b"1.0"
    length = _length(said, modern=modern)
    dropped = _OURS | _nominated(fields) if b"connection" in said else _OURS
    framed: _Fields = [(b"Host", uri[1])]
    if length is None:
        framed.append((b"Transfer-Encoding", b"chunked"))
    elif b"content-length" in said:
        framed.append((b"Content-Length", b"%d" % length))
    kept = [field for field in fields if field[0].lower() not in dropped]
    path = uri[2] if uri[2].startswith(b"/") else b"/" + uri[2]
    # The server learns what the client can read: an old one knows no chunks.
    first = b"%b %b HTTP/%b" % (event.method, path, b"1.1" if modern else b"1.0")
    return RequestHead(
        host=host,
        port=port,
        tunnel=False,
        head=_written(first, [*framed, *kept, (b"Connection", b"close")]),
        length=length,
        waits=waits,
        bare=event.method == b"HEAD",
    )


def _length(said: dict[bytes, bytes], *, modern: bool) -> int | None:
    """Return the length of a body; None where it comes in chunks.

    Raises ``HeadError`` where that can be read in two ways.
    """
    length, coded = said.get(b"content-length", b"0"), b"transfer-encoding" in said
    if coded and (b"content-length" in said or not modern):
        raise HeadError("it is not clear where the body ends")
    if len(length) > _MOST_DIGITS:
        raise HeadError("it is not clear how long the body is")
    return None if coded else int(length)


def _nominated(fields: _Fields) -> frozenset[bytes]:
    """Return the fields that ``Connection`` says are for us alone."""
    named = b",".join(value for key, value in fields if key.lower() == b"connection")
    return frozenset(word.strip() for word in named.lower().split(b","))


def _written(first: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join((first, *(b"%b: %b" % field for field in fields), b"", b""))


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a server's answer."""

    status: int
    #: What the client is sent: the same, with the word that the connection closes.
    head: bytes
    #: The length of its body; None where it goes on until the server closes.
    length: int | None


def answer(raw: bytes, *, bare: bool) -> ResponseHead:
    """Return the answer whose head is ``raw``; ``bare``: it has no body in any case.

    Raises ``HeadError``.
    """
    _plain(raw)
    reader = h11.Connection(h11.CLIENT)
    reader.send(_BARE if bare else _ASKED)
    event = _event(reader, raw, _NO_ANSWER)
    if not isinstance(event, h11.InformationalResponse | h11.Response):
        raise HeadError(_NO_ANSWER)
    if event.http_version not in {b"1.0", b"1.1"} or event.status_code > _MOST_STATUS:
        raise HeadError(_NO_ANSWER)
    fields = event.headers.raw_items()
    said = _said(fields)
    length = None
    if isinstance(reader.next_event(), h11.EndOfMessage):
        length = 0
    elif b"content-length" in said and b"transfer-encoding" not in said:
        length = int(said[b"content-length"])
    kept = [field for field in fields if field[0].lower() not in _HOP]
    if isinstance(event, h11.Response):  # before it, the real answer is to come
        kept.append((b"Connection", b"close"))
    first = b"HTTP/%b %d %b" % (event.http_version, event.status_code, event.reason)
    return ResponseHead(event.status_code, _written(first, kept), length)


def refusal(status: int, words: str, text: str) -> bytes:
    """Return a whole answer of the proxy's own.

    Some clients show its first line alone: ``words`` stand there.
    """
    body = f"{text}\n".encode()
    line = re.sub(r"[^\x20-\x7e]", "?", words)[:300]
    fields = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    return _written(f"HTTP/1.1 {status} {line}".encode(), fields) + body
