"""Tasks that need a GPU or a label of their machine: they go where that is, or wait and say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loglines import logged
from pools import configured, drop, joined, nodes, running, summary

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns


@pytest.fixture
def cluster(tmp_path: Path, slow_server: str) -> Spool:
    """A spool without processes of its own, whose workers have two slots each."""
    made = configured(tmp_path, slow_server)
    config = tmp_path / "config.toml"
    two = "drain_s = 2\nagents_per_process = 2\n"
    config.write_text(config.read_text().replace("drain_s = 2\n", two))
    return made


def most_at_once(spool: Spool) -> int:
    """Return how many odd tasks of ``b`` were seen at work at a time, once it has ended."""
    seen: list[int] = []

    def ended() -> bool:
        seen.append(sum(int(ref[-1]) % 2 for ref in running(spool)))
        return (spool.folder / "outbox/b/summary.json").exists()

    spool.eventually(ended)
    return max(seen)


def at(spool: Spool) -> dict[str, str]:
    """Return where each task ended."""
    ended = logged(spool.folder / "daemon.log", "task_finished")
    return {line["task"]: line["node"] for line in ended}


def test_a_task_goes_where_its_label_is(cluster: Spool) -> None:
    """Others go anywhere."""
    with (
        cluster.serving(),
        joined(cluster, "plain"),
        joined(cluster, "large", "", "--label", "big-disk", "--label", "x"),
    ):
        cluster.eventually(lambda: set(nodes(cluster)) == {"plain", "large"})
        drop_mixed(cluster, 3, {"label": "big-disk"})
        assert summary(cluster)["counts"]["completed"] == 6
    where = at(cluster)
    assert {where[f"00{n}"] for n in (1, 3, 5)} == {"large"}
    assert "plain" in where.values()


def test_what_no_worker_has_waits_and_is_reported_at_once(cluster: Spool) -> None:
    """With the command that helps, in status and log;
    all others go on, and it goes when a worker comes that has it.
    """
    with cluster.serving(), joined(cluster, "plain"):
        cluster.eventually(lambda: nodes(cluster))
        drop_mixed(cluster, 3, {"gpu": 1})
        cluster.eventually(lambda: "tasks need 1 GPU" in cluster.batchd("status").stdout)
        said = " ".join(cluster.batchd("status").stdout.split())
        assert "batchd worker --join - --gpus 1" in said
        assert "needs 1 GPU" in cluster.batchd("status", "b").stdout
        for task in ("002", "004", "006"):
            cluster.eventually((cluster.folder / f"outbox/b/{task}.json").exists)
        with joined(cluster, "strong", "", "--gpus", "1"):
            assert summary(cluster)["counts"]["completed"] == 6
            assert "Trouble" not in cluster.batchd("status").stdout
    assert {at(cluster)[task] for task in ("001", "003", "005")} == {"strong"}
    assert logged(cluster.folder / "daemon.log", "worker_trouble")


def test_gpus_are_held(cluster: Spool) -> None:
    """Of two slots with one GPU, one works on a task that needs it,
    the other on one that does not.
    """
    with cluster.serving(), joined(cluster, "strong", "", "--gpus", "1"):
        cluster.eventually(lambda: nodes(cluster))
        drop_mixed(cluster, 3, {"gpu": 1})
        most = most_at_once(cluster)
        assert summary(cluster)["counts"]["completed"] == 6
    assert most == 1


def test_needs_outlive_a_daemon(cluster: Spool) -> None:
    """The next one knows them, and places the task by them."""
    with cluster.serving(), joined(cluster, "plain"):
        cluster.eventually(lambda: nodes(cluster))
        drop(cluster, 1, needs={"gpu": 2, "label": "a100"})
        cluster.eventually(lambda: "2 GPUs and the label a100" in cluster.batchd("status").stdout)
    with cluster.serving(), joined(cluster, "plain"):
        cluster.eventually(lambda: "2 GPUs and the label a100" in cluster.batchd("status").stdout)
        with joined(cluster, "strong", "", "--gpus", "2", "--label", "a100"):
            assert summary(cluster)["counts"]["completed"] == 1
    assert at(cluster) == {"001": "strong"}


def test_this_machine_has_what_its_configuration_says(tmp_path: Path, slow_server: str) -> None:
    """Its processes share its GPUs; a file that needs what it has not is refused, with the fix."""
    spool = configured(tmp_path, slow_server)
    config = tmp_path / "config.toml"
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("listen", "processes"))]
    text = "\n".join(kept).replace("[pool]", "[pool]\nprocesses = 2\ngpus = 1")
    config.write_text(text + "\n")
    with spool.serving():
        drop_mixed(spool, 2, {"gpu": 1})
        most = most_at_once(spool)
        assert summary(spool)["counts"]["completed"] == 4
        said = spool.batchd("submit", spool.write("c.json", [one({"gpu": 2})]))
    assert most == 1
    assert said.returncode == 2
    shown = " ".join(said.stderr.split())
    assert "it needs 2 GPUs, and this machine has gpus = 1" in shown
    assert "[pool] listen" in shown


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({"gpus": 1}, "gpu"),
        ({"gpu": -1}, "0"),
        ({"gpu": 1.5}, "int"),
        ({"label": "two words"}, "1 to 63 letters"),
    ],
)
def test_needs_that_are_none_are_refused(
    cluster: Spool, needs: dict[str, object], why: str
) -> None:
    """With the place, and what would do."""
    said = cluster.batchd("submit", cluster.write("c.json", [one(needs)]))
    assert said.returncode == 2
    assert "tasks[0].needs" in said.stderr
    assert why in said.stderr


def one(needs: object) -> dict[str, object]:
    """Return a task."""
    return {"first_prompt": "write it", "needs": needs}


def drop_mixed(spool: Spool, pairs: int, needs: object) -> None:
    """Drop a batch ``b`` in which each odd task has needs,
    by the batch's default, and each even one takes that back.
    """
    tasks = [{"first_prompt": "write it"}, one({})] * pairs
    (spool.folder / "inbox").mkdir(exist_ok=True)
    path = spool.folder / "b.json"
    path.write_text(json.dumps({"needs": needs, "tasks": tasks}))
    path.rename(spool.folder / "inbox/b.json")
