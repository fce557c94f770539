"""Reads heads of HTTP messages, and writes them anew: what two readers might understand differently is refused.

A request is passed on as its parts say, not as its bytes stood, so that the server reads what was checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from batchd.errors import BatchdError
from batchd.records.addresses import Address
from batchd.records.hosts import authority

#: The longest head of a request, and of an answer (bytes).
MOST_REQUEST, MOST_ANSWER = 1 << 15, 1 << 17
_MOST_LINE = 1 << 13
_MOST_FIELDS = 100
_BAD, _LONG_LINE, _LONG_HEAD, _VERSION = 400, 414, 431, 505

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (HTTP's word for a word)
_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
# Spaces around a value are taken off by hand: an expression that does it goes back and forth over long rows of them.
_FIELD = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")
_URI = re.compile(r"[hH][tT][tT][pP]://([^/?#\\]+)((?:/[^?#\\]*)?(?:\?[^#\\]*)?)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
#: What concerns this connection, and not the next one; ``Expect`` is answered here.
_HOP = frozenset(
    {
        *("connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "upgrade"),
    }
)
#: What says where a message goes and where it ends: written anew.
_FRAME = frozenset({"content-length", "host", "transfer-encoding"})
#: How an answer's end is told where neither length nor chunks do.
_NO_BODY = frozenset({204, 304})

_Fields = list[tuple[str, str]]


class HeadError(BatchdError):
    """The head of a message is not acceptable."""

    def __init__(self, why: str, status: int = _BAD) -> None:
        super().__init__(why)
        #: What the sender is answered.
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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


def request(raw: bytes) -> Request:
    """Return the request whose head, with the empty line, is ``raw``. Raises ``HeadError``."""
    first, _, rest = raw.decode("latin-1").partition("\r\n")
    if len(first) > _MOST_LINE:
        raise HeadError("the request line is too long", _LONG_LINE)
    line = _LINE.fullmatch(first)
    if line is None:
        raise HeadError("this is no HTTP request")
    method, target, major, minor = line.groups()
    if major != "1":
        raise HeadError("this proxy speaks HTTP/1.1", _VERSION)
    fields = _fields(rest)
    if method == "CONNECT":
        return _tunnel(target, fields)
    return _plain(method, target, fields, modern=minor != "0")


def _fields(text: str) -> _Fields:
    lines = text.removesuffix("\r\n\r\n").removesuffix("\r\n").split("\r\n")
    lines = lines if lines != [""] else []
    if len(lines) > _MOST_FIELDS:
        raise HeadError(f"it has more than {_MOST_FIELDS} header fields", _LONG_HEAD)
    found = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise HeadError("a header field is malformed")
        found.append((match[1], match[2].strip(" \t")))
    return found


def _values(fields: _Fields, name: str) -> list[str]:
    return [value for key, value in fields if key.lower() == name]


def _place(text: str, default: int | None) -> tuple[str | Address, int]:
    try:
        host, port = authority(text)
    except ValueError:
        host, port = "", None
    port = port or default
    if not host or port is None:
        raise HeadError("it names no host and port" if default is None else "it names no host")
    return host, port


def _tunnel(target: str, fields: _Fields) -> Request:
    host, port = _place(target, None)
    # Whoever counts a body here and whoever does not would differ on where the tunnel begins.
    if _values(fields, "transfer-encoding") or any(
        value != "0" for value in _values(fields, "content-length")
    ):
        raise HeadError("CONNECT has no body")
    return Request(host=host, port=port, tunnel=True)


def _plain(method: str, target: str, fields: _Fields, *, modern: bool) -> Request:
    uri = _URI.fullmatch(target)
    if uri is None:
        raise HeadError("this is a proxy: it takes CONNECT, and http:// addresses")
    host, port = _place(uri[1], 80)
    named = _values(fields, "host")
    if len(named) > 1 or (named and _place(named[0], 80) != (host, port)):
        raise HeadError("the Host field names another host than the request line")
    length = _length(fields, modern=modern)
    dropped = _HOP | _FRAME | _nominated(fields)
    kept = [(key, value) for key, value in fields if key.lower() not in dropped]
    framed: _Fields = [("Host", uri[1])]
    if length is None:
        framed.append(("Transfer-Encoding", "chunked"))
    elif length or _values(fields, "content-length"):
        framed.append(("Content-Length", str(length)))
    # The server is told what the client can read: an old one knows no chunks.
    version = "HTTP/1.1" if modern else "HTTP/1.0"
    path = uri[2] if uri[2].startswith("/") else f"/{uri[2]}"
    return Request(
        host=host,
        port=port,
        tunnel=False,
        head=_written(f"{method} {path} {version}", [*framed, *kept, ("Connection", "close")]),
        length=length,
        waits=modern and any(v.lower() == "100-continue" for v in _values(fields, "expect")),
        bare=method == "HEAD",
    )


def _length(fields: _Fields, *, modern: bool) -> int | None:
    """Return the length of a body; None where it comes in chunks. Raises ``HeadError`` where that can be read in two ways."""
    lengths, codings = _values(fields, "content-length"), _values(fields, "transfer-encoding")
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != "chunked" or not modern:
            raise HeadError("it is not clear where the body ends")
        return None
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise HeadError("it is not clear how long the body is")
    return int(lengths[0]) if lengths else 0


def _nominated(fields: _Fields) -> frozenset[str]:
    """Return the fields that ``Connection`` says are for us alone."""
    words = ",".join(_values(fields, "connection")).lower().split(",")
    return frozenset(word.strip() for word in words)


def _written(first: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = (first, *(f"{key}: {value}" for key, value in fields), "", "")
    return "\r\n".join(lines).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a server's answer."""

    status: int
    #: What the client is sent: the same, with the word that the connection closes.
    head: bytes
    #: The length of its body; None where it goes on until the server closes.
    length: int | None


def answer(raw: bytes, *, bare: bool) -> Answer:
    """Return the answer whose head is ``raw``; ``bare``: it has no body in any case. Raises ``HeadError``."""
    first, _, rest = raw.decode("latin-1").partition("\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise HeadError("the server does not answer in HTTP/1.1")
    status, fields = int(match[1]), _fields(rest)
    lengths = _values(fields, "content-length")
    length = None
    if bare or status in _NO_BODY:
        length = 0
    elif len(lengths) == 1 and _LENGTH.fullmatch(lengths[0]):
        length = None if _values(fields, "transfer-encoding") else int(lengths[0])
    kept = [(key, value) for key, value in fields if key.lower() not in _HOP]
    closing = [("Connection", "close")] if status >= 200 else []  # noqa: PLR2004 (below, the real answer is to come)
    return Answer(status, _written(first, [*kept, *closing]), length)


def refusal(status: int, words: str, text: str) -> bytes:
    """Return a whole answer of the proxy's own. Some clients show its first line alone: ``words`` stand there."""
    body = f"{text}\n".encode()
    line = re.sub(r"[^\x20-\x7e]", "?", words)[:300]
    fields = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    return _written(f"HTTP/1.1 {status} {line}", fields) + body
