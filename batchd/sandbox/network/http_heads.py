"""Heads of requests to the proxy, read with h11: what two readers might understand differently is
refused.

The server is sent its request line, Host and length as they were read here; everything else as it
came. h11 reads what HTTP's grammar allows, and some of what it only tolerates; that is refused
before (``_plain``) or after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from batchd.errors import BatchdError
from batchd.records.policy import Address, authority

#: The longest head (bytes).
MOST_BYTES = 1 << 15
_MOST_FIELDS = 100
#: A length of more digits is another one for a server that counts in 64 bits.
_MOST_DIGITS = 18
#: Answers of the proxy's own.
BAD, LONG_HEAD = 400, 431
_VERSION = 505

#: No part of any line; h11 takes most of them in values,
#: and goes back and forth over a row of spaces before the others.
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\r\n"})
_URI = re.compile(rb"[hH][tT][tT][pP]://([^/?#\\]+)((?:/[^?#\\]*)?(?:\?[^#\\]*)?)")
#: What says where a message goes and where it ends, and whether the connection goes on.
_OURS = {b"connection", b"content-length", b"host", b"proxy-connection", b"transfer-encoding"}
_NO_REQUEST = "this is not an HTTP request"
_NO_LENGTH = "it is not clear how long the body is"


class HeadError(BatchdError):
    """What was sent is not acceptable."""

    def __init__(self, why: str, status: int = BAD) -> None:
        super().__init__(why)
        #: What the sender is answered.
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request to the proxy."""

    host: str | Address
    port: int
    #: What the server is sent; empty: it asks for a tunnel.
    head: bytes = b""
    #: The body's length; None where it comes in chunks.
    length: int | None = 0

    @property
    def target(self) -> str:
        """The host and port, for people."""
        name = str(self.host)
        return f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"


def request(raw: bytes) -> RequestHead:
    """Return the request whose head, with the empty line, is ``raw``. Raises ``HeadError``."""
    _plain(raw)
    lower = raw.lower()
    hosted = b"\r\nhost:" in lower
    # h11 insists on a Host field, and a proxy's clients may leave it out:
    # the request line says where it goes.
    whole = raw if hosted else raw.replace(b"\r\n", b"\r\nHost: -\r\n", 1)
    event = _read(whole)
    fields = event.headers.raw_items()[not hosted :]
    said = {key.lower(): value for key, value in fields}
    coded = b"transfer-encoding" in said
    # h11 takes two fields, or "5, 5", for one length where they agree.
    _, *lengths = lower.split(b"\r\ncontent-length:")
    if len(lengths) > 1 or (lengths and b"," in lengths[0].partition(b"\r\n")[0]):
        raise HeadError(_NO_LENGTH)
    if len(said.get(b"content-length", b"")) > _MOST_DIGITS:
        raise HeadError(_NO_LENGTH)
    if coded and (lengths or event.http_version == b"1.0"):
        raise HeadError("it is not clear where the body ends")
    length = None if coded else int(said.get(b"content-length", b"0"))
    if event.method == b"CONNECT":
        # A server that counts a body here and one that does
        # not would differ on where the tunnel begins.
        if length != 0:
            raise HeadError("CONNECT has no body")
        return RequestHead(*_place(event.target, None))
    uri = _URI.fullmatch(event.target)
    if uri is None:
        raise HeadError("this is a proxy: it takes CONNECT, and http:// addresses")
    host, port = place = _place(uri[1], 80)
    named = said.get(b"host", uri[1])
    if named != uri[1] and _place(named, 80) != place:
        raise HeadError("the Host field names another host than the request line")
    path = uri[2] if uri[2].startswith(b"/") else b"/" + uri[2]
    # The server learns what the client can read: an old one knows no chunks.
    version = b"1.0" if event.http_version == b"1.0" else b"1.1"
    written = [b"%b %b HTTP/%b" % (event.method, path, version), b"Host: " + uri[1]]
    if length is None:
        written.append(b"Transfer-Encoding: chunked")
    elif lengths:
        written.append(b"Content-Length: %d" % length)
    written += [b"%b: %b" % field for field in fields if field[0].lower() not in _OURS]
    return RequestHead(host, port, b"\r\n".join((*written, b"Connection: close\r\n\r\n")), length)


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
        raise HeadError(f"it has more than {_MOST_FIELDS} header fields", LONG_HEAD)


def _read(raw: bytes) -> h11.Request:
    """Return what h11 reads. Raises ``HeadError``."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(raw)
    try:
        event = reader.next_event()
    except h11.RemoteProtocolError as error:
        # What was sent stands behind the words; it may be secret.
        why = str(error).partition(": b")[0]
        raise HeadError(f"{_NO_REQUEST}: {why}", error.error_status_hint) from None
    if not isinstance(event, h11.Request):
        raise HeadError(_NO_REQUEST)
    if not event.http_version.startswith(b"1."):
        raise HeadError("this proxy speaks HTTP/1.1", _VERSION)
    return event


def _place(text: bytes, default: int | None) -> tuple[str | Address, int]:
    try:
        host, port = authority(text.decode("latin-1"))
    except ValueError:
        host, port = "", None
    port = port or default
    if not host or port is None:
        raise HeadError("it names no host and port" if default is None else "it names no host")
    return host, port


def refusal(status: int, why: str) -> bytes:
    """Return a whole answer of the proxy's own.

    Some clients show its first line alone: the reason stands there too.
    """
    body = f"batchd: {why}\n".encode()
    line = re.sub(r"[^\x20-\x7e]", "?", f"batchd: {why}")[:300]
    return (
        f"HTTP/1.1 {status} {line}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
