"""The live page as people use it: in a real browser, with a real daemon at work behind it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from chromium import Page, chromium
from pages import HOSTILE
from serving import Page as Served, web
from stored import Night

from batchd.store.queries import StoreReader
from batchd.views import view
from batchd.words import duration, money, rough, span
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_SLOW = "standin/latency-0.5+steps-4"
_ROWS = "[...document.querySelectorAll('#tasks tbody tr th a')].map(e => e.textContent)"
_HEADLINE = "document.querySelector('.headline')?.textContent"
#: What the console says of a page that one must sign in to.
_EXPECTED = "401 (Unauthorized)"


def browse(
    served: Served, read: Callable[[Page], Awaitable[None]], *, at: str = "/", width: int = 1280
) -> None:
    """Sign in as people do, read, and hold the page to silence:
    a clean console, nothing asked elsewhere.
    """

    async def go() -> None:
        async with chromium() as page:
            await page.look(width, 900)
            await page.open(served.address + at)
            await page.click("#token")
            await page.type(served.token)
            await page.key("Enter")
            await page.until("document.querySelector('.bar-top')")
            page.errors[:] = [e for e in page.errors if _EXPECTED not in e]
            await read(page)
            assert page.errors == []
            others = [r for r in page.requests if not r.startswith((served.address, "about:"))]
            assert others == []
            assert not any(served.token in r for r in page.requests)

    asyncio.run(go())


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    """A store with a night's work of 240 tasks, some of whose texts are hostile."""
    night = Night(tmp_path_factory.mktemp("night"), 240, hostile=HOSTILE)
    night.write()
    (night.folder / "config.toml").write_text("")
    return Spool(night.folder)


def test_signing_in(spool: Spool) -> None:
    """A wrong token is reported; the right one opens the page that was asked for,
    and is kept in no place that scripts read.
    """

    async def go(served: Served) -> None:
        async with chromium() as page:
            await page.open(f"{served.address}/cost?by=model&days=7")
            await page.click("#token")
            await page.type("not the token at all")
            await page.key("Enter")
            await page.until(
                "document.getElementById('said').textContent.includes('not the token')"
            )
            await page.type(served.token)
            await page.click("button")
            await page.until("document.querySelector('.bar-top')")
            assert await page.evaluate("location.search") == "?by=model&days=7"
            assert (
                await page.evaluate("document.cookie + JSON.stringify({...localStorage})") == "{}"
            )
            await page.open(f"{served.address}/#{'x' * 43}")
            await page.until("document.querySelector('.bar-top')")  # who is in needs no code

    with web(spool) as served:
        asyncio.run(go(served))


def test_the_page_is_live(spool: Spool) -> None:
    """Counts move while tasks end, a conversation grows,
    and a stopped daemon is shown: nothing is reloaded.
    """
    config = spool.folder / "config.toml"
    config.write_text(
        f'{config.read_text()}[models."{_SLOW}"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    )

    async def read(page: Page) -> None:
        await page.until(f"{_HEADLINE} === 'Nothing has been dropped yet'")
        tasks = [{"first_prompt": f"do {n}", "model": _SLOW} for n in range(6)]
        drop = spool.folder / "inbox" / "b.json"
        with spool.serving():
            await asyncio.to_thread(drop.write_text, json.dumps({"tasks": tasks}))
            await page.until(f"{_HEADLINE}.startsWith('6 tasks left')")
            await page.evaluate("window.same = true")
            await page.until("document.querySelectorAll('#agents tbody tr').length === 2")
            await page.until(
                f"/^[1-5] tasks? left/.test({_HEADLINE}) && !{_HEADLINE}.startsWith('6')"
            )
            await page.until(
                "/^[1-6] . 6$/.test(document.querySelector('#batches td').textContent)"
            )
            assert await page.evaluate("window.same")
            await page.open(f"{served.address}/batches/b")
            await page.until("document.querySelector('#tasks tbody a')")
            await page.click("#tasks tbody tr:last-child a")
            await page.until("document.querySelectorAll('.passage').length > 3")
            before = await page.evaluate("document.querySelectorAll('.passage').length")
            await page.until(f"document.querySelectorAll('.passage').length > {before}")
            await page.until("document.querySelector('.passage[data-kind=end]')")
            kinds = "[...document.querySelectorAll('.passage')].map(e => e.dataset.kind)"
            assert (await page.evaluate(kinds)).count("answer") == 4
            assert (await page.evaluate(kinds)).count("prompt") == 1
            await page.until("document.querySelector('.headline .status[data-status=completed]')")
        await page.until("document.querySelector('.daemon').textContent === 'No daemon runs'")

    with web(spool) as served:
        browse(served, read)


def test_following_a_conversation(spool: Spool) -> None:
    """While it runs the page stays at the end of it;
    who scrolls up stops that, and a button takes it up again.
    """
    config = spool.folder / "config.toml"
    model = "standin/latency-0.4+steps-30"
    config.write_text(
        f'{config.read_text()}[models."{model}"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    )
    end = "document.documentElement.scrollHeight - scrollY - innerHeight < 4"

    async def read(page: Page) -> None:
        with spool.serving():
            tasks = [{"first_prompt": "go on", "model": model}]
            drop = spool.folder / "inbox" / "b.json"
            await asyncio.to_thread(drop.write_text, json.dumps({"tasks": tasks}))
            await page.until("document.querySelector('#agents tbody tr')")
            await page.open(f"{served.address}/batches/b/001")
            await page.until(f"document.querySelectorAll('.passage').length > 12 && {end}")
            assert (
                await page.evaluate("document.querySelector('.follow').textContent")
                == "Following · pause"
            )
            await page.evaluate("document.querySelector('.follow').focus()")
            await page.key("Home")
            await page.until("scrollY === 0")
            count = await page.evaluate("document.querySelectorAll('.passage').length")
            await page.until(f"document.querySelectorAll('.passage').length > {count + 2}")
            assert await page.evaluate("scrollY") == 0
            await page.click(".follow")
            await page.until(end)

    with web(spool) as served:
        browse(served, read)


def test_sorting_and_filtering_a_batch(night: Spool) -> None:
    """Heads sort, turned round by a second click; chips and words filter;
    the address keeps it; pages turn.
    """

    async def read(page: Page) -> None:
        await page.until("document.querySelectorAll('#tasks tbody tr').length === 100")
        # What comes above the table pushes it down: a click before that would meet a task's row.
        await page.until("document.getElementById('timeline')")
        usd = "[...document.querySelectorAll('#tasks tbody [data-column=usd]')].map(e => e.textContent)"
        await page.click('#tasks thead [data-column="usd"] button')
        await page.until(
            "document.querySelector('[aria-sort=descending]')?.dataset.column === 'usd'"
        )
        await page.until(f"{_ROWS}[0] !== '001'")
        costs = [float(c.strip("$ +")) for c in await page.evaluate(usd) if c[:1] == "$"]
        assert costs == sorted(costs, reverse=True)
        assert len(costs) == 100
        await page.click('[aria-label="Next page"]')
        await page.until(
            "document.querySelector('.pager span').textContent.startsWith('101 to 200 of 240')"
        )
        await page.click('[data-chip="error"]')
        marks = "[...new Set([...document.querySelectorAll('#tasks tbody .status')].map(e => e.dataset.status))]"
        await page.until(f"JSON.stringify({marks}) === '[\"error\"]'")
        errors = len(await page.evaluate(_ROWS))
        await page.click("#search")
        await page.type("LOOP")
        await page.until(f"{_ROWS}.length < {errors}")
        found = await page.evaluate(_ROWS)
        assert found
        assert "q=LOOP" in await page.evaluate("location.search")
        await page.type(" no such thing")
        await page.until("!document.querySelector('.none').hidden")
        await page.open(f"{served.address}/batches/night?q=loop&status=error&sort=-usd")
        await page.until(f"{_ROWS}.length === {len(found)}")
        assert await page.evaluate("document.getElementById('search').value") == "loop"
        await page.evaluate("document.querySelector('#tasks tbody a').focus()")
        await page.key("Enter")
        await page.until("document.querySelector('.passage[data-kind=end]')")

    with web(night) as served:
        browse(served, read, at="/batches/night")


def test_what_models_wrote_stays_text(night: Spool) -> None:
    """Markup in prompts, answers and outputs is shown, letter by letter, and never runs;
    nor would it if it were let in.
    """

    async def read(page: Page) -> None:
        for number, text in enumerate(HOSTILE):
            await page.open(f"{served.address}/batches/night/{number + 1:03}")
            await page.until("document.querySelectorAll('.passage').length > 3")
            for place in (".first-prompt .said", ".conversation .said", ".conversation pre"):
                found = await page.evaluate(
                    f"[...document.querySelectorAll('{place}')].map(e => e.textContent)"
                )
                assert any(text.strip() in each for each in found), (place, text, found)
        assert await page.evaluate("window.pwned === undefined")
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=9\">')"
        )
        await page.until("document.querySelector('img')")
        await asyncio.sleep(0.1)
        assert await page.evaluate("window.pwned === undefined")
        assert any("Content Security Policy" in error for error in page.errors)
        page.errors.clear()

    with web(night) as served:
        browse(served, read)


def test_times_are_shown_as_on_a_terminal(night: Spool) -> None:
    """Pages write spans of time letter for letter as commands do."""
    seconds = [0, 0.25, 0.96, 9.94, 9.95, 9.999, 29.5, 59.4, 59.5, 60, 89.9, 90, 725.4, 3599.6]
    seconds += [3600, 5399, 5400, 86_399, 129_600, 172_799.4, 172_800, 1e7]

    async def read(page: Page) -> None:
        for name, written in (("duration", duration), ("span", span), ("rough", rough)):
            found = await page.evaluate(f"{json.dumps(seconds)}.map(Words.{name})")
            assert found == [written(s) for s in seconds], name

    with web(night) as served:
        browse(served, read)


def test_ends_are_said_as_on_a_terminal(night: Spool) -> None:
    """Pages have the same words for how a task ended as commands do."""
    limits = ("max_iterations", "max_calls", "tokens", "budget", "wall_clock")
    known: list[tuple[str, str | None]] = [("completed", None)]
    known += [("timeout", reason) for reason in limits]
    known += [("error", "auth"), ("error", "provider_unavailable")]
    known += [("cancelled", "user"), ("cancelled", "dependency")]

    async def read(page: Page) -> None:
        found = await page.evaluate(f"{json.dumps(known)}.map(([s, r]) => Words.outcome(s, r, 10))")
        assert found == [view.said(status, reason, 10) for status, reason in known]

    with web(night) as served:
        browse(served, read)


def test_what_steers_terminals_is_shown_as_what_it_is(night: Spool) -> None:
    """As on a terminal: colours go, other sequences and marks that turn text around can be read;
    no empty boxes.
    """
    given = "\x1b[1;31mred\x1b[0m\x1b[K \x1b]0;owned\x07 \u202eabc\r\nnext\tline"

    async def read(page: Page) -> None:
        shown = await page.evaluate(f"Dom.el('p', {{ text: {json.dumps(given)} }}).textContent")
        assert shown == "red \\x1b]0;owned\\x07 \\u202eabc\nnext\tline"

    with web(night) as served:
        browse(served, read)


def test_money_is_split_by_tag(night: Spool) -> None:
    """As `batchd cost --by tag` splits it;
    what a task with two tags cost is in both lines, and that is said.
    """
    with StoreReader(night.folder / ".batchd/batchd.db") as reader:
        [row] = reader.spend(("tag",))

    async def read(page: Page) -> None:
        await page.until("document.querySelector('.spent tbody tr, .spent li, .spent table')")
        await page.click("[data-value=tag]")
        await page.until("document.querySelector('.spent').textContent.includes('nightly')")
        text = await page.evaluate("document.querySelector('.spent').textContent")
        assert f"> {money(row.tally.known_usd)}" in text
        assert await page.evaluate("location.search") == "?by=tag&days=0"

    with web(night) as served:
        browse(served, read, at="/cost?days=0")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dark", [False, True])
def test_light_dark_and_a_telephone(night: Spool, dark: bool) -> None:
    """Every page fits into 360 points, follows the reader's colours,
    has one main heading and a name for what can be used.
    """

    async def read(page: Page) -> None:
        for path in ("/", "/batches/night", "/batches/night/011", "/cost?days=0", "/nowhere"):
            for width in (360, 1280):
                await page.look(width, 780, dark=dark)
                await page.open(served.address + path)
                await page.until(_HEADLINE)
                await page.until(f"document.documentElement.scrollWidth === {width}")
            paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark
            levels = await page.evaluate(
                "[...document.querySelectorAll('h1, h2, h3')].filter(e => e.offsetParent).map(e => Number(e.tagName[1]))"
            )
            assert levels.count(1) == 1
            assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
            nodes = await page.accessible()
            roles = {node["role"]["value"] for node in nodes}
            assert {"banner", "main", "navigation"} <= roles
            usable = {"button", "link", "searchbox", "combobox"}
            nameless = [n for n in nodes if n["role"]["value"] in usable and not n["name"]["value"]]
            assert nameless == []
        page.errors[:] = [e for e in page.errors if "404 (Not Found)" not in e]

    with web(night) as served:
        browse(served, read)


def test_a_server_that_is_gone_is_shown(night: Spool) -> None:
    """Without a connection the page says so, and goes on by itself when there is one again."""

    async def go() -> None:
        async with chromium() as page:
            with web(night) as served:
                await page.open(served.address)
                await page.click("#token")
                await page.type(served.token)
                await page.key("Enter")
                await page.until("document.querySelector('#ended')")
                port = served.port
            await page.until("!document.querySelector('.lost').hidden")
            with web(night, "--listen", f"127.0.0.1:{port}"):
                await page.until("document.querySelector('.lost').hidden")

    asyncio.run(go())


def test_no_asset_is_left_out() -> None:
    """What lies in the folder of assets is what pages are made of."""
    folder = Path(__file__).parents[2] / "batchd/web/assets"
    script = "".join(p.read_text() for p in sorted(folder.glob("*.js")))
    assert "innerHTML" not in script
    assert "eval(" not in script
