"""The lease of a worker on another machine."""

from __future__ import annotations

from batchd.pool.lease import Lease, now

_HOUR = 3600.0


def test_a_lease_counts_from_when_a_heartbeat_was_sent() -> None:
    """Its answer renews it; one that was answered before, or never sent, renews nothing."""
    ends: list[float] = []
    lease = Lease(0.0, ends.append)
    assert lease.lapsed
    before = now()
    number = lease.sending()
    lease.lasts(_HOUR)
    lease.renewed(number)
    assert not lease.lapsed
    assert before + _HOUR <= ends[-1] <= now() + _HOUR
    lease.lasts(0.0)
    assert lease.lapsed
    lease.renewed(number)
    lease.renewed(number + 1)
    assert lease.lapsed


def test_a_shorter_lease_counts_at_once() -> None:
    """What is left of the longer one before is worth nothing."""
    ends: list[float] = []
    lease = Lease(_HOUR, ends.append)
    lease.lasts(60.0)
    assert ends[-1] <= now() + 60.0


def test_old_heartbeats_are_forgotten() -> None:
    """A daemon that never answers costs no memory."""
    lease = Lease(_HOUR, lambda _until: None)
    numbers = [lease.sending() for _ in range(1000)]
    lease.lasts(0.0)
    lease.lasts(_HOUR)
    lease.renewed(numbers[0])
    assert lease.lapsed
    lease.renewed(numbers[-1])
    assert not lease.lapsed
