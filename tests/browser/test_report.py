"""The report as people use it: in a real browser, with mouse, keys and a telephone's width."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from chromium import Page, chromium
from pages import HOSTILE
from stored import BEGUN, Night

from batchd.cli import main

pytestmark = pytest.mark.in_turns

_FIRST = "document.querySelector('.grid tbody .link').textContent"
_ROWS = "document.querySelectorAll('#tasks tbody tr').length"
_COSTS = "[...document.querySelectorAll('.grid tbody [data-column=usd]')].map(e => e.textContent)"
_DIALOG = "document.querySelector('dialog')"
_CONTRASTS = """
(() => {
  const rgb = text => { const p = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    p.fillStyle = text; p.fillRect(0, 0, 1, 1); return [...p.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = text => rgb(text).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const style = getComputedStyle(document.documentElement), ink = n => light(style.getPropertyValue(`--${n}`).trim());
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const found = {};
  for (const paper of ["paper", "raised", "sunken"]) for (const name of ["ink", "soft", "accent", "error", "timeout"])
    found[`${name} on ${paper}`] = ratio(ink(name), ink(paper));
  return found;
})()
"""


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A store with a night's work of 240 tasks, and the report on it beside their transcripts."""
    night = Night(tmp_path_factory.mktemp("night"), 240, hostile=HOSTILE)
    night.write()
    config = night.folder / "config.toml"
    # Room for some transcripts only.
    config.write_text("[report]\ntranscripts_mb = 0.5\n")
    assert main(["--config", str(config), "report", night.name]) == 0
    return night


def browse(night: Night, read: Callable[[Page], Awaitable[None]], *, at: str = "") -> None:
    """Open the report, read it, and hold it to silence: no errors, nothing asked of the network."""

    async def go() -> None:
        async with chromium() as page:
            await page.look(1280, 900)
            await page.open(_address(night) + at)
            await read(page)
            assert page.errors == []
            assert {r.partition("#")[0] for r in page.requests} <= {_address(night), "about:blank"}

    asyncio.run(go())


def _address(night: Night) -> str:
    return (night.outbox / "report.html").as_uri()


def test_sorting_filtering_and_a_transcript(night: Night) -> None:
    """A click sorts, another turns it round; chips and words filter;
    a row opens its task; the address keeps it all.
    """

    async def read(page: Page) -> None:
        assert await page.evaluate(_FIRST) == "011"  # failures first
        await page.click('.grid thead [data-column="usd"] button')
        costs = [float(c.strip("$ +")) for c in await page.evaluate(_COSTS) if c[:1] == "$"]
        assert costs == sorted(costs, reverse=True)
        await page.click('.grid thead [data-column="usd"] button')
        assert (
            await page.evaluate("document.querySelector('[aria-sort=ascending]').dataset.column")
            == "usd"
        )
        costs = [float(c.strip("$ +")) for c in await page.evaluate(_COSTS) if c[:1] == "$"]
        assert costs == sorted(costs)

        await page.click('[data-chip="error"]')
        marks = "[...new Set([...document.querySelectorAll('.grid tbody .status')].map(e => e.dataset.status))]"
        assert await page.evaluate(marks) == ["error"]
        errors = await page.evaluate(_ROWS)
        await page.click("#search")
        await page.type("answers? no: LOOP")
        assert await page.evaluate(_ROWS) == 0
        assert await page.evaluate("!document.querySelector('.none').hidden")
        await page.evaluate("document.getElementById('search').value = ''")
        await page.type("loop")
        assert 0 < await page.evaluate(_ROWS) < errors

        await page.click(".grid tbody tr .link")
        await page.until(f"{_DIALOG}.open")
        text = await page.evaluate(f"{_DIALOG}.innerText")
        assert "the same tool call with the same output" in text
        assert "python3 -m pytest -q tests/test_1.py" in text
        # The last turn that failed is open.
        failed = "[...document.querySelectorAll('dialog .passage[data-ok=false] details')]"
        assert await page.evaluate(f"{failed}.at(-1).open")
        await page.click("dialog summary", index=2)
        assert await page.evaluate("document.querySelectorAll('dialog details')[2].open")
        await page.click('dialog [aria-label="Next task"]')
        await page.until(f"!{_DIALOG}.querySelector('h2').textContent.includes('041')")

        kept = await page.evaluate("location.hash")
        assert all(part in kept for part in ("q=loop", "status=error", "sort=usd", "task="))
        await page.open(_address(night) + kept)
        await page.until(f"{_DIALOG}.open")
        assert await page.evaluate("document.getElementById('search').value") == "loop"
        await page.click('dialog [aria-label="Close"]')
        await page.until("!location.hash.includes('task=')")

    browse(night, read)


def test_what_models_wrote_stays_text(night: Night) -> None:
    """Markup in prompts, answers, outputs and file names is shown,
    letter by letter, and never runs.
    """

    async def read(page: Page) -> None:
        for number, text in enumerate(HOSTILE):
            await page.evaluate(f"location.hash = 'task={number + 1:03}'")
            await page.until(f"{_DIALOG}.open && {_DIALOG}.textContent.includes('{number + 1:03}')")
            for place in (
                ".files li",
                ".conversation .said",
                ".conversation pre",
                ".body > section .said",
            ):
                found = await page.evaluate(
                    f"[...document.querySelectorAll('dialog {place}')].map(e => e.textContent)"
                )
                assert any(text.strip() in each for each in found), (place, text, found)
        cautions = await page.evaluate(
            "[...document.querySelectorAll('#cautions .caution')].map(e => e.textContent)"
        )
        for text in HOSTILE:
            assert any(text.strip() in each and "cat -v " in each for each in cautions), cautions
        assert await page.evaluate("window.pwned === undefined")
        # The policy holds even where markup were let in.
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=9\">')"
        )
        await page.until("document.querySelector('img')")
        assert await page.evaluate("window.pwned === undefined")
        assert any("Content Security Policy" in error for error in page.errors)
        page.errors.clear()
        page.requests[:] = [r for r in page.requests if not r.endswith("/x")]

    browse(night, read)


def test_everything_can_be_done_with_keys(night: Night) -> None:
    """The timeline walks from task to task and opens one;
    Escape leads back; a head sorts at Enter.
    """

    async def read(page: Page) -> None:
        await page.evaluate("document.querySelector('canvas').focus()")
        for _ in range(3):
            await page.key("ArrowRight")
        assert "003" in await page.evaluate("document.getElementById('said').textContent")
        assert await page.evaluate("!document.querySelector('.tip').hidden")
        await page.key("+")
        assert await page.evaluate("'zoomed' in document.querySelector('canvas').dataset")
        await page.key("Enter")
        await page.until(f"{_DIALOG}.open")
        assert "003" in await page.evaluate("document.activeElement.textContent")
        await page.key("Escape")
        await page.until(f"!{_DIALOG}.open")
        assert await page.evaluate("document.activeElement.tagName") == "CANVAS"
        await page.evaluate("document.querySelector('.grid thead button').focus()")
        await page.key("Enter")
        await page.key("Enter")
        assert await page.evaluate(_FIRST) == "240"

    browse(night, read)


def test_the_timeline_opens_what_is_clicked_on(night: Night) -> None:
    """Its first bar is the first task; what was parked is shown beside."""

    async def read(page: Page) -> None:
        await page.click("canvas", dx=0.002)  # in the middle of its height: some lane's first
        await page.until(f"{_DIALOG}.open")
        lane = await page.evaluate(f"Number({_DIALOG}.querySelector('h2').textContent)")
        assert 1 <= lane <= night.slots
        label = await page.evaluate("document.querySelector('canvas').getAttribute('aria-label')")
        assert "waiting at once" in label

    browse(night, read)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dark", [False, True])
def test_light_dark_and_a_telephone(night: Night, dark: bool) -> None:
    """Colours follow the reader's choice, with enough contrast;
    360 points are wide enough for all of it.
    """

    async def read(page: Page) -> None:
        await page.look(1280, 900, dark=dark)
        paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark
        poor = {k: v for k, v in (await page.evaluate(_CONTRASTS)).items() if v < 4.5}
        assert poor == {}
        await page.look(360, 780, dark=dark)
        await page.until("document.documentElement.scrollWidth === 360")
        # As long as ids may be, among the slowest and costliest.
        await page.evaluate(
            "document.querySelectorAll('.leader .link').forEach(e => e.textContent = 'L'.repeat(64))"
        )
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        await page.click(".grid tbody .link", index=1)
        await page.until(f"{_DIALOG}.open")
        assert await page.evaluate(f"{_DIALOG}.scrollWidth <= 360")

    browse(night, read)


def test_a_screen_reader_finds_its_way(night: Night) -> None:
    """One main heading, landmarks, a name for all that can be used,
    headings in order, a language.
    """

    async def read(page: Page) -> None:
        nodes = await page.accessible()
        roles = [node["role"]["value"] for node in nodes]
        assert {"banner", "main", "contentinfo", "table", "region", "status"} <= {*roles}
        usable = {"button", "link", "textbox", "searchbox", "combobox", "application"}
        nameless = [n for n in nodes if n["role"]["value"] in usable and not _name(n)]
        assert nameless == []
        levels = await page.evaluate(
            "[...document.querySelectorAll('body > header h1, main h2, main h3')].map(e => Number(e.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert await page.evaluate("document.documentElement.lang") == "en"
        heads = "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope]'))"
        assert await page.evaluate(heads)

    browse(night, read)


def _name(node: dict[str, Any]) -> str:
    return str(node.get("name", {}).get("value", ""))


def test_transcripts_beyond_the_quota_are_linked(night: Night) -> None:
    """Failures come first; what has no room any more is a link to its file, beside an excerpt."""

    async def read(page: Page) -> None:
        assert await page.evaluate(
            "document.querySelector('.notes').textContent.includes('transcripts')"
        )
        await page.evaluate("location.hash = 'task=011'")  # ran out of its rounds
        await page.until("document.querySelectorAll('dialog .passage').length > 3")
        await page.evaluate("location.hash = 'task=240'")
        await page.until(f"{_DIALOG}.textContent.includes('it lies beside it')")
        link = await page.evaluate("document.querySelector('dialog .body a').href")
        assert unquote(link.removeprefix("file://")) == str(night.outbox / "240.jsonl")

    browse(night, read)


def test_what_a_page_leaves_out_is_said(tmp_path: Path) -> None:
    """A batch too large for its page has figures of every task;
    of how many it has no texts stands above, and where they are in each.
    """
    night = Night(tmp_path, 90)
    night.write()
    config = night.folder / "config.toml"
    config.write_text("[report]\ntranscripts_mb = 0.01\n")
    assert main(["--config", str(config), "report", night.name]) == 0

    async def read(page: Page) -> None:
        notes = await page.evaluate("document.querySelector('.notes').textContent")
        found = re.search(r"Of (\d+) tasks the page has only the table's figures", notes)
        assert found
        assert 0 < int(found[1]) < 90
        await page.evaluate("location.hash = 'task=090'")
        await page.until(f"{_DIALOG}.textContent.includes('090.json has the rest')")
        assert await page.evaluate("document.querySelectorAll('#tasks tbody tr').length") == 90

    browse(night, read)


def test_batches_stand_side_by_side(tmp_path: Path) -> None:
    """A row for each task that ran in both, those that ended differently first;
    a mark opens the task, and a telephone is wide enough.
    """
    first, second = Night(tmp_path, 12), Night(tmp_path, 12, name="second", begun=BEGUN + 9e4)
    first.write()
    second.write()
    (tmp_path / "config.toml").write_text("")
    batches, file = [first.name, second.name], tmp_path / "both.html"
    asked = ["--config", str(tmp_path / "config.toml"), "report", *batches, "-o", str(file)]
    assert main(asked) == 0

    async def go() -> None:
        async with chromium() as page:
            await page.look(360, 780)
            await page.open(file.as_uri())
            heads = "[...document.querySelectorAll('.matrix thead th')].map(e => e.textContent)"
            assert await page.evaluate(heads) == ["Task", *batches]
            first_row = "document.querySelector('.matrix tbody th').textContent"
            assert (await page.evaluate(first_row)).startswith("011")
            assert await page.evaluate("document.documentElement.scrollWidth") == 360
            await page.click(".matrix tbody button", index=1)
            await page.until(f"{_DIALOG}.open")
            assert await page.evaluate(f"{_DIALOG}.querySelector('h2').textContent") == "second/011"
            assert page.errors == []

    asyncio.run(go())


def test_money_is_shown_honestly(night: Night) -> None:
    """Unknown prices, unsettled calls and estimated tokens are said, not summed up in silence."""

    async def read(page: Page) -> None:
        text = await page.evaluate("document.body.innerText")
        assert "unsettled" in text
        assert "No price is known for" in text
        assert "≈" in text
        assert "> $" in text

    browse(night, read)


def test_without_scripts_the_summary_stands(night: Night) -> None:
    """A reader without JavaScript sees the outcome, and where the rest is."""
    page = (night.outbox / "report.html").read_text("utf-8")
    plain = page.partition("<noscript>")[2].partition("</noscript>")[0]
    assert "<p>240 tasks: " in plain
    assert "results.jsonl" in plain
