"""The machine that all tests of the units share, and the daemon on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from installed import as_a_system_service
from machine import Machine, Service, booted, until


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which batchd is installed as a system service."""
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        as_a_system_service(machine)
        yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """The daemon under the shipped unit.

    Whatever a test does to it, nothing is left that is not its child.
    """
    service = Service(machine)
    assert service.show("ActiveState") == "active"
    yield service
    until(lambda: service.show("ActiveState") == "active", machine.last_words)
    assert service.orphans() == {}
