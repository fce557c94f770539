"""`batchd search`, and the same over HTTP: where a text stands in what tasks were asked, said, ran
and printed.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from serving import Page, web
from stored import Night

from batchd.observe import search as searching
from batchd.observe.search import finder, search
from batchd.store.queries import StoreReader
from tests.conftest import Spool

#: Steers a terminal, and is no word of the other tasks.
_EVIL = "Needle\x1b]0;owned\x07 in\nthe hay"


@pytest.fixture
def spool(spool: Spool) -> Spool:
    """A spool with two batches, whose first tasks say the same."""
    for name in ("evening", "night"):
        Night(spool.folder, 4, name=name, hostile=(_EVIL,)).write()
    return spool


def _found(spool: Spool, *arguments: str) -> list[dict[str, Any]]:
    done = spool.batchd("search", "--json", *arguments)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_text_is_found_wherever_it_stands(spool: Spool) -> None:
    """Prompt, answers, outputs and commands, each with its turn;
    of all batches the newest first, and no byte of it steers a terminal.
    """
    found = _found(spool, "needle", "night/001")
    assert {each["where"] for each in found} == {"prompt", "answer", "output"}
    prompt, answer, output, *_ = found
    assert (prompt["turn"], answer["turn"], output["turn"]) == (0, 1, 1)
    assert (prompt["before"], prompt["hit"]) == ("", "Needle")
    assert {each["batch"] for each in _found(spool, "needle")} == {"night", "evening"}
    said = spool.batchd("search", "needle", "-n", "1")
    line = r"night/001           prompt    Needle\x1b]0;owned\x07 in the hay"
    assert said.stdout == f"{line}\n"
    assert "-n 10 shows more" in said.stderr
    commands = _found(spool, "test_1.py", "night")
    assert {(each["where"], each["turn"]) for each in commands} == {("command", 1)}
    assert len(commands) == 4


def test_what_is_not_found_or_asked_well_is_said(spool: Spool) -> None:
    """A capital counts; names and numbers that make no sense are named."""
    for code, said, *arguments in (
        (1, "Nothing is found", "NEEDLE"),
        (1, "Nothing is found", "needle", "--case"),
        (2, "1 to 200 characters", ""),
        (2, "there is no batch none", "x", "none"),
        (2, "there is no task night/none", "x", "night/none"),
        (2, "-n is 0", "x", "-n", "0"),
    ):
        done = spool.batchd("search", *map(str, arguments))
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert str(said) in done.stderr


def test_of_pruned_tasks_what_their_folder_has_is_searched(spool: Spool) -> None:
    """And it is said that the rest is gone."""
    with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
        for task, text in reader.results("night"):
            (spool.folder / "outbox/night" / f"{task}.json").write_text(text)
    assert spool.batchd("prune", "--yes", "--older-than", "0").returncode == 0
    done = spool.batchd("search", "needle", "night")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["prompt", "answer"]
    assert "Pruned: of night only prompts and answers" in done.stderr
    assert spool.batchd("search", "test_1.py", "night").returncode == 1


def test_a_search_goes_on_where_it_stopped(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of any size it finds each place once, in the same order."""
    with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
        row, find = reader.batch("night"), finder("e")
        whole = [hit for _, part in search(reader, row, find) for hit in part]
        monkeypatch.setattr(searching, "_EVENTS", 3)
        parts, first = [], 0
        while part := next(search(reader, row, find, first), None):
            first, hits = part
            parts += hits
    assert len(whole) > 20
    assert parts == whole


def test_the_page_searches_a_moment_at_a_time(spool: Spool) -> None:
    """An answer has some hits, and where to go on; odd questions are refused with a reason."""

    def every(page: Page, text: str) -> list[dict[str, Any]]:
        found, start = [], 0
        while True:
            answer = page.get(f"/api/search?batch=night&q={quote(text)}&from={start}")
            found += answer["hits"]
            if not (start := answer["next"]):
                return found

    with web(spool) as page:
        assert every(page, "needle") == _found(spool, "needle", "night")
        assert every(page, "nowhere at all") == []
        for query, status in (
            ("batch=night&q=", 400),
            ("batch=night&q=x&from=1.2", 400),
            (f"batch=night&q={'x' * 201}", 400),
            ("batch=none&q=x", 404),
            ("q=x", 404),
        ):
            answer, data = page.ask(f"/api/search?{query}")
            assert (answer.status, bool(json.loads(data)["error"])) == (status, True), query
        assert page.ask("/api/search?batch=night&q=x", token=None)[0].status == 401
