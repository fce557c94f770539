"""What Ray carries, logs and spills of a task: nothing that can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pools import drop, running, summary
from ray.cluster_utils import Cluster

from tests.conftest import Spool

#: In a prompt, in a secret and, since the stand-in says which step it takes, in an answer.
_CANARIES = (b"canary-in-the-prompt", b"canary-in-the-secret", b"echo step 2")


def _seen_by_ray(session: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what Ray has written, and the arguments and variables of its processes."""
    for path in session.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()
    for path in Path("/dev/shm").rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (entry / name).read_bytes()
            except OSError:
                continue
            if b"ray" in text or b"batchd worker" in text.replace(b"\0", b" "):
                yield str(entry / name), text


def test_nothing_of_a_task_can_be_read_where_ray_is(spool: Spool, cluster: Cluster) -> None:
    """Not in its logs, its shared memory or its spill, nor in any argument."""
    secret = {"TOKEN": {"secret": "canary-in-the-secret"}}
    with spool.serving():
        drop(spool, 12, first_prompt="write canary-in-the-prompt", env=secret)
        spool.eventually(lambda: running(spool))
        session = Path(os.path.realpath(cluster.head_node.get_session_dir_path()))
        found = [*_where(session)]
        assert summary(spool)["counts"]["completed"] == 12
        found += _where(session)
    assert not found
    # They are there to be found.
    kept = b"".join(path.read_bytes() for path in (spool.folder / "outbox/b").glob("*.jsonl"))
    assert _CANARIES[0] in kept
    assert _CANARIES[2] in kept


def _where(session: Path) -> Iterator[str]:
    for place, text in _seen_by_ray(session):
        yield from (f"{place}: {each!r}" for each in _CANARIES if each in text)
