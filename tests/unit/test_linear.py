"""Task files that are made to take long:
twice the file takes about twice the work, never four times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from batchd import config as configuration
from batchd.config import Config
from batchd.errors import TaskFileError
from batchd.spool import taskfile


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a configuration of a spool with one provider."""
    folder = tmp_path_factory.mktemp("linear")
    (folder / "config.toml").write_text(
        '[agent]\nmodel = "standin/m"\n[providers.standin]\nbase_url = "http://127.0.0.1:1"\n'
    )
    return configuration.load(folder / "config.toml", {})


def _work(data: bytes, name: str, config: Config) -> int:
    """Return how many calls of Python functions it takes to parse a file:
    a measure that no busy machine changes.
    """
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        taskfile.parse(data, name, config)
    except TaskFileError:
        pass
    finally:
        sys.setprofile(None)
    return count


def _one(**keys: object) -> bytes:
    return json.dumps({"first_prompt": "x", **keys}).encode()


def _misspelt(n: int) -> bytes:
    tasks = [{"first_prompt": "x", "id": f"task-{i}", "after": [f"tusk-{i}"]} for i in range(n)]
    return json.dumps(tasks).encode()


_HOSTILE: dict[str, Callable[[int], bytes]] = {
    "ids that are nearly right": _misspelt,
}


@pytest.mark.parametrize("make", _HOSTILE.values(), ids=_HOSTILE)
def test_four_times_the_file_is_no_more_than_four_times_the_work(
    make: Callable[[int], bytes], spool: Config
) -> None:
    """Counted in calls:
    what compares everything with everything else makes sixteen times as many.
    """
    _work(make(10), "a.json", spool)  # what is loaded or cached once
    few, many = (_work(make(n), "a.json", spool) for n in (200, 800))
    assert many < 6 * few


def test_a_large_object_with_a_key_given_twice_is_refused_at_once(spool: Config) -> None:
    """200,000 keys, one of them twice; to count each among all takes minutes."""
    keys = b",".join([b'"k0":1', *(b'"k%d":1' % i for i in range(200_000))])
    data = b'{"first_prompt":"x","metadata":{%s}}' % keys
    with pytest.raises(TaskFileError, match=r"metadata\.k0: this key is given twice"):
        taskfile.parse(data, "a.json", spool)


def test_a_path_longer_than_the_kernel_takes_is_not_resolved(spool: Config) -> None:
    """A million steps would take a system call each, with all the steps before it."""
    with pytest.raises(TaskFileError, match="dir: a path has at most 4,095 characters"):
        taskfile.parse(_one(dir="a/" * 1_000_000), "a.json", spool)


def test_a_key_of_many_digits_is_named_like_any_other(spool: Config) -> None:
    """Python makes no integer of more than 4,300 digits:
    sorting the errors by their numbers must not need one.
    """
    data = _one(**{"1" * 5000: 1, "x 10": 1, "x 9": 1})
    with pytest.raises(TaskFileError) as raised:
        taskfile.parse(data, "a.json", spool)
    places = [problem.place for problem in raised.value.problems]
    assert len(places) == 3
    assert places.index("['x 9']") < places.index("['x 10']")


def test_a_long_key_above_many_errors_is_not_written_out_in_each(spool: Config) -> None:
    """Its head and tail are; else 4 MB of file would be 200 GB of messages."""
    data = b'{"first_prompt":"x","metadata":{"%s":[%s]}}' % (
        b"k" * 2_000_000,
        b",".join([b"1e999"] * 100_000),
    )
    with pytest.raises(TaskFileError) as raised:
        taskfile.parse(data, "a.json", spool)
    assert len(str(raised.value)) < 200_000
    assert str(raised.value.problems[-1]) == "and at least 4800 more errors"


def test_what_a_batch_says_once_is_not_multiplied_without_a_bound(spool: Config) -> None:
    """60 kB of variables over 10,000 tasks would be kept 10,000 times: refused, with the sum."""
    batch = {
        "env": {f"V{i}": "x" * 50 for i in range(1000)},
        "tasks": [{"first_prompt": "x"}] * 10_000,
    }
    with pytest.raises(TaskFileError, match="10,000 tasks would take 599 MB, more than 268"):
        taskfile.parse(json.dumps(batch).encode(), "a.json", spool)
    few = {**batch, "tasks": [{"first_prompt": "x"}] * 2}
    assert len(taskfile.parse(json.dumps(few).encode(), "a.json", spool).tasks) == 2


def test_a_schema_that_many_tasks_have_is_checked_once(spool: Config) -> None:
    """A batch may write out one large schema in each task."""

    def data(name: str, count: int) -> bytes:
        schema = {"properties": {f"{name}{i}": {"type": "string"} for i in range(100)}}
        return json.dumps([{"first_prompt": "x", "output_schema": schema}] * count).encode()

    _work(data("loads the library", 1), "a.json", spool)
    one = _work(data("a", 1), "a.json", spool)
    assert _work(data("b", 20), "a.json", spool) < 2 * one
