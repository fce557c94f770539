"""Who may join: tokens, tickets, and from where."""

from __future__ import annotations

import pytest

from batchd.errors import InputError, UsageError
from batchd.pool.joining import ticket
from batchd.pool.joining.invitations import Invitations
from batchd.pool.joining.ticket import Ticket


def test_a_token_is_good_once() -> None:
    """And carries whose it is."""
    invitations = Invitations()
    token = invitations.invite(("10.0.0.7",), 10.0, badge=4)
    assert not invitations.problem(token, "10.0.0.7")
    assert invitations.take(token) == 4
    assert "used before" in invitations.problem(token, "10.0.0.7")


@pytest.mark.parametrize(
    ("machine", "address", "good"),
    [
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.8", False),
        ("10.0.0.7", "::ffff:10.0.0.7", True),
        ("10.0.0.0/24", "10.0.0.200", True),
        ("10.0.0.5/24", "10.0.1.1", False),
        ("fe80::1", "fe80::1%eth0", True),
        ("fe80::1", "10.0.0.7", False),
    ],
)
def test_a_token_is_good_from_its_addresses(machine: str, address: str, *, good: bool) -> None:
    """Networks, and both families; a try from elsewhere does not use it up."""
    invitations = Invitations()
    token = invitations.invite((machine,), 10.0)
    assert (not invitations.problem(token, address)) == good
    assert good or "Make one with `batchd invite" in invitations.problem(token, address)


def test_a_token_that_is_too_old_is_not_known() -> None:
    """Nor is one of an earlier daemon, or none."""
    invitations = Invitations()
    token = invitations.invite(("10.0.0.7",), 0.0)
    for each in (token, "another", ""):
        assert "is not known here" in invitations.problem(each, "10.0.0.7")


@pytest.mark.parametrize("machine", ["node7", "10.0.0.0/33", "", "10.0.0"])
def test_what_is_no_address_is_refused(machine: str) -> None:
    """With the value."""
    with pytest.raises(UsageError, match="is neither an IP address nor a network"):
        Invitations().invite((machine,), 10.0)


def test_a_ticket_reads_as_it_is_written() -> None:
    """IPv6 as well."""
    for host in ("head.lan", "10.0.0.1", "fe80::1"):
        made = Ticket(host=host, port=7443, fingerprint="ab" * 32, token="secret-token")
        assert ticket.parse(f"{made}\n") == made
        assert "secret-token" not in repr(made)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "batchd-ticket-1",
        f"batchd-ticket-1 head {'ab' * 32} t",
        f"batchd-ticket-1 head:0 {'ab' * 32} t",
        f"batchd-ticket-1 head:70000 {'ab' * 32} t",
        f"batchd-ticket-1 head:\uff17 {'ab' * 32} t",
        f"batchd-ticket-1 head:7443 {'AB' * 32} t",
        f"batchd-ticket-2 head:7443 {'ab' * 32} t",
        f"batchd-ticket-1 head:7443 {'ab' * 32} t t",
    ],
)
def test_what_is_no_ticket_is_refused(line: str) -> None:
    """With the command that prints one."""
    with pytest.raises(InputError, match="batchd invite"):
        ticket.parse(line)
