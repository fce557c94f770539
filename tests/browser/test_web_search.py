"""The search of a batch's page, a task file that is dropped on a page, another model for a retry,
and a patch's command: in a real browser.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chromium import Page, chromium
from serving import Page as Served, web
from stored import Night
from test_web import browse
from test_web_orders import _signed_in as signed_in

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_HITS = "document.querySelectorAll('#find .hits li').length"
_SAID = "document.querySelector('#find [role=status]').textContent"
_DIALOG = "document.querySelector('dialog.ask')"
#: Has a file be dropped, as a hand would.
_DROP = """(() => {
  const given = new DataTransfer();
  given.items.add(new File([%s], %s, { type: "application/json" }));
  const event = name => new DragEvent(name, { dataTransfer: given, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event("dragover"));
  const shown = document.body.hasAttribute("data-dropping");
  document.body.dispatchEvent(event("drop"));
  return shown;
})()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_batch_is_searched_as_one_types(tmp_path: Path, width: int) -> None:
    """Each place has its task, turn and excerpt, as text; what is typed next takes its place."""
    night = Night(tmp_path, 30, hostile=("<b>Needle</b> in the hay",))
    night.write()
    (tmp_path / "config.toml").write_text("")

    async def read(page: Page) -> None:
        await page.until("document.querySelector('#find input')?.offsetParent")
        await page.click("#find input")
        await page.type("needle")
        await page.until(f"{_SAID}.startsWith('Found in')")
        assert await page.evaluate(_HITS) > 2
        first = "document.querySelector('#find .hits li').textContent"
        assert await page.evaluate(first) == "001 · prompt<b>Needle</b> in the hay"
        assert (
            await page.evaluate("document.querySelector('#find .hits mark').textContent")
            == "Needle"
        )
        assert await page.evaluate("document.querySelectorAll('#find b').length") == 0
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not await page.evaluate(wide)
        await page.type(" nowhere")
        await page.until(f"{_SAID} === 'Nothing is found.'")
        assert await page.evaluate(_HITS) == 0

    with web(Spool(tmp_path)) as served:
        browse(served, read, at="/batches/night", width=width)


def test_a_task_file_is_dropped_and_run_again_with_another_model(spool: Spool) -> None:
    """The page asks, the daemon takes it up or says what is wrong; "Run again" names what was paid,
    and has the models of the configuration.
    """
    config = spool.folder / "config.toml"
    more = '\n[models."standin/steps-1"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    config.write_text(f'{config.read_text()}{more}\n[web]\norders = ["submit", "retry"]\n')
    wrong, right = "{'tasks': [{}]}", '{"tasks": [{"first_prompt": "x"}]}'

    async def go(served: Served) -> None:
        async with chromium() as page:
            await signed_in(page, served, "/")
            await page.until("document.querySelector('[data-order=submit]')")
            for text, name, said in (
                (wrong, "ü.json", "Refused, as ü:"),
                (right, "c.json", "Taken up as c"),
            ):
                assert await page.evaluate(_DROP % (repr(text), repr(name)))
                await page.until(f"{_DIALOG}.open && {_DIALOG}.querySelector('[data-yes]')")
                assert f"Take {name} up" in await page.evaluate(f"{_DIALOG}.textContent")
                await page.click("dialog.ask [data-yes]")
                await page.until(f"{_DIALOG}.textContent.includes('{said}')")
            await page.click("dialog.ask a")
            await page.until("document.querySelector('[data-order=retry]')")
            assert not await page.evaluate("document.querySelector('[data-order=cancel]')")
            await page.click("[data-order=retry]")
            await page.until(f"{_DIALOG}.textContent.includes('So far c has cost $')")
            choose = "const s = document.getElementById('ask-model'); s.value = 'standin/steps-1'; s.dispatchEvent(new Event('change'))"
            await page.evaluate(f"(() => {{ {choose} }})()")
            await page.until(
                f"{_DIALOG}.textContent.includes('Run 1 task of c with standin/steps-1 again?')"
            )
            await page.click("dialog.ask [data-yes]")
            await page.until(f"{_DIALOG}.textContent.includes('c-2: 1 task of c queued again')")
            assert not any("Content Security Policy" in error for error in page.errors)

    with spool.serving(), web(spool) as served:
        asyncio.run(go(served))
        assert served.get("/api/batches/c-2/001")["task"]["model"] == "standin/steps-1"
