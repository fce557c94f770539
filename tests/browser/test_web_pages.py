"""What stands on the pages: prompts in every list,
ends in words, what was pruned, and the way back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import get_args

import pytest
from chromium import Page, chromium
from serving import Page as Served, web
from stored import BEGUN, Night

from batchd import events
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_TEXT = "document.body.innerText"
_HEADLINE = "document.querySelector('.headline')?.textContent"


@pytest.fixture(scope="module")
def spool_of_two(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    """A store with a pruned batch ``old``, whose folder has one result left,
    and a night of 60 tasks, with its report.
    """
    folder = tmp_path_factory.mktemp("two")
    Night(folder, 3, name="old", begun=BEGUN - 3 * 86_400).write()
    (folder / "config.toml").write_text("")
    spool = Spool(folder)
    pruned = spool.batchd("prune", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    Night(folder, 60).write()
    result = {"schema": "batchd/result/1", "task": "001", "first_prompt": "Write the old game."}
    (folder / "outbox/old/001.json").write_text(json.dumps(result))
    assert spool.batchd("report", "night").returncode == 0
    return spool


@pytest.fixture(scope="module")
def served(spool_of_two: Spool) -> Served:
    """The page of it."""
    with web(spool_of_two) as page:
        yield page  # type: ignore[misc]


def read(served: Served, at: str, look: Callable[[Page], Awaitable[None]]) -> None:
    """Sign in, open a page, and look at it."""

    async def go() -> None:
        async with chromium() as page:
            await page.look(1280, 900)
            await page.open(served.address + at)
            await page.click("#token")
            await page.type(served.token)
            await page.key("Enter")
            await page.until(
                "document.querySelector('.bar-top') || document.getElementById('foot')"
            )
            await look(page)

    asyncio.run(go())


def test_lists_show_how_prompts_begin(served: Served) -> None:
    """Of batches that of the first task, and how many more there are;
    of tasks each; of pruned ones what their folder has.
    """

    async def look(page: Page) -> None:
        await page.until("document.querySelector('#ended .prompt')")
        prompts = "Object.fromEntries([...document.querySelectorAll('#ended tbody tr')].map(r => [r.querySelector('a').textContent, r.querySelector('.prompt')?.textContent]))"
        found = await page.evaluate(prompts)
        assert found["night"].startswith("Write a number guessing game in Python, with a menu")
        assert found["night"].endswith("… and 59 more")
        assert found["old"] == "Write the old game. … and 2 more"
        await page.open(f"{served.address}/batches/night")
        await page.until("document.querySelectorAll('#tasks .prompt').length === 60")
        await page.open(f"{served.address}/cost?by=batch&days=0")
        await page.until("document.querySelectorAll('.spent .prompt').length === 2")
        await page.open(f"{served.address}/batches/old")
        await page.until("document.querySelectorAll('#tasks .prompt').length === 1")
        text = await page.evaluate(_TEXT)
        assert "Pruned: what its tasks asked, said and did is dropped" in text

    read(served, "/", look)


def test_a_pruned_tasks_page_says_so(served: Served) -> None:
    """With what its folder still has, or that it has nothing; no step is offered that is gone."""

    async def look(page: Page) -> None:
        await page.until("document.querySelector('.gone')")
        text = await page.evaluate(_TEXT)
        assert "This task was pruned." in text
        assert "Its result is still in" in text
        assert "Write the old game." in text
        assert "Show what came before" not in text
        await page.open(f"{served.address}/batches/old/002")
        await page.until("document.querySelector('.gone')")
        assert "are all that is left" in await page.evaluate(_TEXT)
        await page.until("!document.querySelector('.conversation li')")

    read(served, "/batches/old/001", look)


def test_ends_are_said_in_words(served: Served) -> None:
    """A check that never passed is not a limit that ran out;
    what is stored stays in JSON; no name of a class is on any page.
    """
    [row] = [r for r in served.get("/api/batches/night")["rows"] if r["id"] == "011"]
    assert (row["status"], row["reason"]) == ("timeout", "max_iterations")
    words = "not accepted after 1 round"
    classes = [kind.__name__ for kind in get_args(events.Event)]
    assert "TaskFinished" in classes
    paths = ("/", "/cost", "/batches/night", "/batches/night/011", "/batches/night/017")

    async def look(page: Page) -> None:
        await page.until(f"{_TEXT}.includes('{words}')")
        assert "max iterations" not in await page.evaluate(_TEXT)
        await page.open(f"{served.address}/batches/night/011")
        await page.until(f"{_HEADLINE}?.includes('{words}')")
        for path in paths:
            await page.open(served.address + path)
            await page.until(_HEADLINE)
            text = await page.evaluate(_TEXT)
            assert [name for name in classes if name in text.split()] == [], path

    read(served, "/batches/night?status=timeout", look)


def test_every_page_leads_back(served: Served) -> None:
    """From a task to its list as it was, from there and from anywhere to the start;
    from an unknown address too.
    """

    async def look(page: Page) -> None:
        await page.until("document.querySelector('#tasks tbody a')")
        await page.click('[data-chip="error"]')
        await page.until("location.search === '?status=error'")
        # What the server sends for that takes the place of what is there.
        others = "#tasks tbody [data-status]:not([data-status=error])"
        await page.until(f"!document.querySelector('{others}')")
        await page.click("#tasks tbody a")
        await page.until("location.pathname.length > '/batches/night'.length")
        await page.until("document.querySelectorAll('.crumbs a').length === 2")
        await page.click(".crumbs a", index=1)
        await page.until("location.pathname + location.search === '/batches/night?status=error'")
        await page.until("document.querySelector('.crumbs a')")
        await page.click(".crumbs a")
        await page.until("location.pathname === '/'")
        for path in ("/cost", "/nowhere", "/batches/none", "/batches/none/001"):
            await page.open(served.address + path)
            await page.until("document.querySelector('.crumbs a[href=\"/\"]')")

    read(served, "/batches/night", look)


def test_a_task_that_ended_shows_its_answer_and_its_verdict(served: Served) -> None:
    """Above what it did, step by step: what it was asked,
    what was thought of it, what it said last, and its files.
    """

    async def look(page: Page) -> None:
        await page.until("document.querySelector('.verdict')")
        heads = "[...document.querySelectorAll('.content h2')].map(e => e.textContent)"
        await page.until(f"{heads}.includes('Files')")
        assert (await page.evaluate(heads))[:2] == ["Verdict", "Answer"]
        text = await page.evaluate(_TEXT)
        assert "The check does not accept it." in text
        assert "exit code 1" in text

    read(served, "/batches/night/011", look)


def test_the_page_of_a_batch_has_what_its_report_has(served: Served) -> None:
    """When what ran, causes with what to change, models side by side, money; and failures first.
    A mark, a name and a row lead to the task, whose last turn that failed is open.
    """

    async def look(page: Page) -> None:
        await page.until("document.querySelector('#timeline canvas')")
        ids = "[...document.querySelectorAll('.content section[id]')].map(e => e.id)"
        assert await page.evaluate(ids) == [
            *("find", "timeline", "setbacks", "beside", "money", "leaders", "tasks")
        ]
        await page.until("document.querySelector('#tasks tbody a')?.textContent === '011'")
        text = await page.evaluate("document.getElementById('setbacks').textContent")
        assert "batchd retry night --failed" in text
        assert await page.evaluate("document.querySelectorAll('#beside tbody tr').length") == 3
        await page.evaluate("document.querySelector('#setbacks a').focus()")
        await page.key("Enter")
        await page.until("location.pathname === '/batches/night/017'")
        await page.until("document.querySelector('.passage[data-kind=end]')")
        failed = "[...document.querySelectorAll('.passage[data-ok=false] details')]"
        assert await page.evaluate(f"{failed}.at(-1).open")

    read(served, "/batches/night", look)


def test_the_chart_says_what_the_table_says(served: Served) -> None:
    """Each day has a bar, those without a call too;
    who cannot see it reads what it shows, and the table.
    """

    async def look(page: Page) -> None:
        await page.until("document.querySelector('.days svg')")
        label = await page.evaluate(
            "document.querySelector('.days svg').getAttribute('aria-label')"
        )
        assert label.startswith("Cost by day, ")
        assert label.endswith("The table has the figures.")
        bars = await page.evaluate("document.querySelectorAll('.days g').length")
        assert 1 < bars <= 92
        titles = "[...document.querySelectorAll('.days g title')].map(e => e.textContent)"
        found = await page.evaluate(titles)
        assert sum(": $0, 0 calls" in title for title in found) < len(found)
        heads = "[...document.querySelectorAll('.spent thead th')].map(e => e.textContent)"
        assert await page.evaluate(heads) == ["Day", "Calls", "Tokens", "Cost", "Unsettled"]

    read(served, "/cost?days=0", look)
