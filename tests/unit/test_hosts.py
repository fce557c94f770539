"""Lists of hosts: how they are read, what they hold, who may ask for which;
and addresses no task may reach.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from batchd.records import Network
from batchd.records.policy import authority, forbidden, parse, parsed, refusal


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM.", "api.example.com"),
        ("*.Example.com", "*.example.com"),
        ("host_1.example:8443", "host_1.example:8443"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example:80", "*.xn--bcher-kva.example:80"),
        ("localhost:8080", "localhost:8080"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[::1]:8080"),
        ("[0:0::0:1]", "[::1]"),
    ],
)
def test_an_entry_is_read_as_it_is_compared(written: str, read: str) -> None:
    """In lower case, without a dot at its end, in the letters that DNS knows."""
    assert str(parse(written)) == read
    assert str(parse(read)) == read


@pytest.mark.parametrize(
    "written",
    [
        *("", "*", "*.", ".", "a..b", ".a", "a.*.b", "a*.b", "-a.b", "a-.b", "a b", "a\n", "a\0b"),
        *("https://a.example", "a.example/path", "user@a.example", "a.example:", "a.example:0"),
        *("a.example:65536", "a.example:x", "a.example:80:80", "::1", "[::1", "[::1%eth0]", "[a]"),
        *("127.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.01", "1.2.3.4.5"),
        *("*.1", "*.127.0.0.1", "*.[::1]", "169.254.169.254", "[fd00:ec2::254]", "0.0.0.0", "[::]"),
        *("224.0.0.1", "[ff02::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "a" * 64, "a." * 140 + "b"),
        *("ü" * 300, "xn--\u00fc.example", "a\u3002\u3002b"),
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused(written: str) -> None:
    """Above all what somebody else might take for an address."""
    with pytest.raises(ValueError, match=r"(?i)host|port|IPv6|allowed"):
        parse(written)


@pytest.mark.parametrize(
    ("entry", "name", "port", "held"),
    [
        ("a.example", "a.example", 443, True),
        ("a.example", "a.example", 80, True),
        ("a.example", "a.example", 22, False),
        ("a.example:22", "a.example", 22, True),
        ("a.example:22", "a.example", 443, False),
        ("a.example", "b.a.example", 443, False),
        ("*.a.example", "b.a.example", 443, True),
        ("*.a.example", "c.b.a.example", 443, True),
        ("*.a.example", "a.example", 443, False),
        ("*.a.example", "xa.example", 443, False),
        ("*.a.example", "a.example.evil", 443, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
    ],
)
def test_an_entry_holds_what_it_says_and_no_more(
    entry: str, name: str, port: int, *, held: bool
) -> None:
    """A name is not what lies below it; a port is that port alone; none is 80 and 443."""
    assert parse(entry).holds(name, port) is held


@pytest.mark.parametrize(
    ("asked", "ceiling", "refused"),
    [
        (False, False, ""),
        ((), False, ""),
        (True, True, ""),
        (True, False, "does not allow it"),
        (("a.example",), False, "does not allow it"),
        (True, ("a.example",), "only lists of hosts, out of a.example"),
        (("a.example",), True, ""),
        (("*.example",), True, ""),
        (("127.0.0.1:80",), True, "an address must stand in a list"),
        (("a.example",), ("a.example",), ""),
        (("a.example:443",), ("a.example",), ""),
        (("a.example:8443",), ("a.example",), "does not allow a.example:8443; it allows a.example"),
        (("a.example",), ("a.example:443",), "does not allow a.example;"),
        (("b.a.example", "*.b.a.example", "*.a.example"), ("*.a.example",), ""),
        (("a.example", "b.a.example"), ("*.a.example",), "does not allow a.example;"),
        (("*.a.example",), ("a.example",), "does not allow *.a.example;"),
        (("*.example",), ("*.a.example",), "does not allow *.example;"),
        (("127.0.0.1:8080",), ("127.0.0.1:8080",), ""),
        (("127.0.0.1:8081",), ("127.0.0.1:8080",), "does not allow 127.0.0.1:8081"),
        (("[::1]:8080",), ("127.0.0.1:8080", "*.example"), "does not allow [::1]:8080"),
    ],
)
def test_a_task_has_no_more_than_the_operator_allows(
    asked: Network, ceiling: Network, refused: str
) -> None:
    """Lists within the operator's; an address only where he wrote that very address."""
    why = refusal(asked, ceiling)
    assert (refused in why) if refused else (why == "")


def test_all_that_is_wrong_with_a_list_is_reported() -> None:
    """Each entry at once; entries that mean the same count once; a list has an end."""
    assert parsed(["A.example", "a.example."]) == (parse("a.example"),)
    with pytest.raises(ValueError, match=r"'a/b' .*; '\*' "):
        parsed(["a/b", "c.example", "*"])
    with pytest.raises(ValueError, match="at most 500"):
        parsed(f"h{n}.example" for n in range(501))


@pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1"])  # fmt: skip
def test_private_addresses_are_for_hosts_that_the_operator_named(text: str) -> None:
    """Loopback and networks of one's own."""
    assert forbidden(ip_address(text), private=False) == "a private address"
    assert forbidden(ip_address(text), private=True) == ""


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.1.1", "224.0.0.1", "239.255.255.250"),
        *("240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.9"),
        *("100.100.100.200", "168.63.129.16", "::", "fe80::1", "fec0::1", "ff02::1", "::1.2.3.4"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "fd00:ec2::254", "2001:db8::1"),
        *("2002:7f00:1::", "2001:0:1::1", "64:ff9b:1::1", "64:ff9b::a9fe:a9fe", "100::1", "4000::1"),
    ],
)  # fmt: skip
def test_some_addresses_are_always_refused(text: str) -> None:
    """No host, everybody, neighbours, metadata, and IPv4 in another's clothes:
    not even for private hosts.
    """
    assert forbidden(ip_address(text), private=True)
    assert forbidden(ip_address(text), private=False)


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "172.32.0.1", "100.128.0.1"])  # fmt: skip
def test_public_addresses_are_for_all(text: str) -> None:
    """Also those that a network without IPv4 writes as IPv6."""
    assert forbidden(ip_address(text), private=False) == ""
    assert forbidden(ip_address("64:ff9b::7f00:1"), private=False) == "a private address"


def test_a_request_names_hosts_in_ascii_alone() -> None:
    """A client writes names as DNS does; the dot at the end and the case do not matter."""
    assert authority("EXAMPLE.com.:443") == ("example.com", 443)
    assert authority("[::1]") == (ip_address("::1"), None)
    for text in ("bücher.example", "a.example%00", "a@b", "a.example..", "a\x0bb"):
        with pytest.raises(ValueError, match="is no"):
            authority(text)
