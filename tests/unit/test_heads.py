"""Heads of requests: what is passed on, and what two readers might understand differently."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest

from batchd.sandbox.network.http_heads import HeadError, refusal, request

HOST = b"Host: a.example\r\n"


def test_a_request_is_rewritten() -> None:
    """The request line, Host and length are written anew, and the connection closes;
    everything else goes as it came.
    """
    found = request(
        b"POST http://A.example:81/p?q=1 HTTP/1.1\r\nhost: a.example:81\r\nProxy-Connection: keep-alive\r\n"
        b"Connection: keep-alive, Upgrade\r\nX-Kept:  v\xfc \t\r\nUpgrade: h2c\r\n"
        b"Expect: 100-Continue\r\ncontent-Length: 05\r\n\r\n"
    )
    assert (found.host, found.port, found.length) == ("a.example", 81, 5)
    assert found.target == "a.example:81"
    assert found.head == (
        b"POST /p?q=1 HTTP/1.1\r\nHost: A.example:81\r\nContent-Length: 5\r\nX-Kept: v\xfc\r\n"
        b"Upgrade: h2c\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"http://a.example", b"/"),
        (b"HTTP://a.example/", b"/"),
        (b"http://a.example?x", b"/?x"),
        (b"http://a.example:80//b@c:d/?@e", b"//b@c:d/?@e"),
    ],
)
def test_an_address_may_leave_its_path_out(line: bytes, path: bytes) -> None:
    """And an @ behind the host is a letter like any other."""
    found = request(b"GET " + line + b" HTTP/1.0\r\n\r\n")
    assert found.head.startswith(b"GET " + path + b" HTTP/1.0\r\nHost: a.example")
    assert (found.host, found.port, found.length) == ("a.example", 80, 0)


def test_a_tunnel_has_a_host_and_a_port() -> None:
    """The Host field of its request is ignored."""
    found = request(b"CONNECT a.Example.:443 HTTP/1.1\r\nHost: other\r\n\r\n")
    assert (found.host, found.port, found.head) == ("a.example", 443, b"")
    assert request(b"CONNECT [::1]:8 HTTP/1.1\r\n\r\n").host == ip_address("::1")
    assert request(b"CONNECT [::1]:8 HTTP/1.1\r\n\r\n").target == "[::1]:8"


@pytest.mark.parametrize(
    "raw",
    [
        # request lines
        *(b"", b"GET", b"GET http://a.example/\r\n", b"GET  http://a.example/ HTTP/1.1\r\n"),
        *(b"GET\thttp://a.example/ HTTP/1.1\r\n", b" GET http://a.example/ HTTP/1.1\r\n"),
        *(b"GET http://a.example/ b HTTP/1.1\r\n", b"GET http://a.example/ HTTP/1.1 \r\n"),
        *(b"GET http://a.example/ HTTP/2.0\r\n", b"GET http://a.example/ http/1.1\r\n"),
        *(b"PRI * HTTP/2.0\r\n", b"G(T http://a.example/ HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + HOST),
        *(b"GET //a.example/ HTTP/1.1\r\n" + HOST, b"GET https://a.example/ HTTP/1.1\r\n"),
        *(b"GET ftp://a.example/ HTTP/1.1\r\n", b"GET a.example HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n"),
        *(b"GET http://a.example#@b/ HTTP/1.1\r\n", b"GET http://a.example\\@b/ HTTP/1.1\r\n"),
        *(b"GET http://u@a.example/ HTTP/1.1\r\n", b"GET http://u:p@a.example/ HTTP/1.1\r\n"),
        *(b"GET http://a.example:/ HTTP/1.1\r\n", b"GET http://a.example:0/ HTTP/1.1\r\n"),
        *(b"GET http:///x HTTP/1.1\r\n", b"GET http://a%2eexample/ HTTP/1.1\r\n"),
        *(b"GET http://a.example/ HTTP/1.1\nX: y\r\n", b"GET http://a.example/\x00 HTTP/1.1\r\n"),
        *(b"CONNECT a.example HTTP/1.1\r\n", b"CONNECT http://a.example:80/ HTTP/1.1\r\n"),
        *(b"CONNECT a.example:80/ HTTP/1.1\r\n", b"CONNECT a@b:80 HTTP/1.1\r\n"),
        b"CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 5\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_to_a_proxy_is_refused(raw: bytes) -> None:
    """Whatever is not exactly one host, one port and one path."""
    with pytest.raises(HeadError):
        request(raw + b"\r\n")


@pytest.mark.parametrize(
    "fields",
    [
        *(b"Host: b.example\r\n", HOST + HOST, HOST + b"Host: b.example\r\n", b"Host:\r\n"),
        *(b"Host: a.example:81\r\n", b"Host: a.example@b\r\n", b"Host: a.example b\r\n"),
        *(b"X : y\r\n", b" X: y\r\n", b"X: y\r\n z\r\n", b"X\r\n", b": y\r\n", b"X: \x00\r\n"),
        *(b"X: y\rZ: 1\r\n", b"X: y\nHost: b\r\n", b"X: \x7f\r\n", b"\xfc: y\r\n", b"A: b\r\n" * 101),
        *(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"Content-Length: 5, 5\r\n"),
        *(b"Content-Length: +5\r\n", b"Content-Length: -5\r\n", b"Content-Length: 0x5\r\n"),
        *(b"Content-Length: 5 5\r\n", b"Content-Length:\r\n", b"Content-Length: \xb2\r\n"),
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        *(b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked, identity\r\n"),
        *(b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n"),
        *(b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:\r\n"),
        # what h11 takes
        *(b"X: \x01\r\n", b"X: \x1f\r\n", b"\tX: y\r\n", b"X: y\r\n\tz\r\n", HOST + b" b.example\r\n"),
        *(b"Content-Length: 5,5\r\n", b"Content-Length: 5\r\nX: y\r\ncontent-length:5\r\n"),
        *(b"Content-Length: 1000000000000000000\r\n", b"X: y\nZ: 1\r\n", HOST + b"X: y\n\n"),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(fields: bytes) -> None:
    """Where a message goes, and where it ends, must be said once and plainly."""
    with pytest.raises(HeadError):
        request(b"POST http://a.example/ HTTP/1.1\r\n" + fields + b"\r\n")
    with pytest.raises(HeadError):
        request(b"POST http://a.example/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_the_frame_cannot_be_nominated_away() -> None:
    """Connection may name fields for us alone;
    where a message goes and ends is written all the same.
    """
    found = request(
        b"POST http://a.example/ HTTP/1.1\r\nConnection: content-length, host\r\nContent-Length: 5\r\n\r\n"
    )
    assert b"Host: a.example\r\nContent-Length: 5\r\n" in found.head
    assert found.length == 5


def test_reading_a_head_takes_no_time() -> None:
    """Also one that is made to be slow to read."""
    ends = (b"x", b"\x00", b"\x01", b"\x0b", b"\r", b"\n")
    rows = [row + end for row in (b" " * 30_000, b"x " * 15_000, b"\r\n " * 10_000) for end in ends]
    began = time.perf_counter()
    for row in rows:
        for raw in (b"GET http://a.example/ HTTP/1.1\r\nX:" + row, b"GET " + row):
            with contextlib.suppress(HeadError):
                request(raw + b"\r\n\r\n")
    assert time.perf_counter() - began < 1


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    """It is logged, and a malformed field may be one with a key in it."""
    for line in (b"Authorization : s3cret", b"s3cret", b"Content-Length: s3cret"):
        with pytest.raises(HeadError) as refused:
            request(b"GET http://a.example/ HTTP/1.1\r\n" + line + b"\r\n\r\n")
        assert "s3cret" not in str(refused.value)
    assert str(refused.value) == "this is not an HTTP request: bad Content-Length"


def test_only_a_door_loads_h11() -> None:
    """A daemon, and a worker whose tasks have no list of hosts, start without it."""
    script = "import sys, batchd.daemon, batchd.pool.worker; print('h11' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout == b"False\n"


def test_a_refusal_is_one_answer() -> None:
    """Its first line cannot be broken in two, and its length is true."""
    raw = refusal(403, "no\r\nX: y ü")
    first, _, rest = raw.partition(b"\r\n")
    assert first == b"HTTP/1.1 403 batchd: no??X: y ?"
    head, _, body = rest.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
