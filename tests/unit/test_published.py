"""What was published under 0.1 reads and is written as it was."""

from __future__ import annotations

import json

import msgspec

from batchd import formats
from batchd.events import Resumed, decode, encode
from batchd.notify import format as notifications
from batchd.records import Origin, SandboxPolicy
from batchd.workspace.fetching import FetchJob


def test_events_of_an_older_journal_are_written_as_they_were() -> None:
    """A transcript that is made again from one has the same bytes:
    what was added since is left out where it says nothing.
    """
    stored = b'["Resumed",{"at":1.5,"attempt":2,"terms":null}]'
    assert encode(decode(stored)) == stored
    away = json.loads(encode(Resumed(at=1.5, attempt=2, node="node7")))
    assert away == ["Resumed", {"at": 1.5, "attempt": 2, "terms": None, "node": "node7"}]


def test_schemas_keep_the_names_of_their_definitions() -> None:
    """Programs name classes by them."""
    for schema in (formats.schema("result"), formats.schema("summary"), notifications.schema()):
        text = json.dumps(schema)
        assert '"#/$defs/Status"' in text
        assert "TaskStatus" not in text


def test_a_daemon_of_the_version_before_has_its_mirrors_fetched() -> None:
    """It runs on until it is restarted, and may say what it asks for: there is fetching alone."""
    job = FetchJob(
        origin=Origin(kind="clone", source="/srv/a"),
        kept="/var/kept",
        fetch=True,
        policy=SandboxPolicy(),
        credentials="",
        timeout_s=1.0,
        max_bytes=1,
    )
    asked = json.loads(msgspec.json.encode(job))
    for said in ({}, {"type": "FetchJob"}):
        assert msgspec.json.decode(json.dumps({**asked, **said}), type=FetchJob) == job
