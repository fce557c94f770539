"""The search of a batch's page, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Page
from serving import web
from stored import Night
from test_web import browse

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_HITS = "document.querySelectorAll('#find .hits li').length"
_SAID = "document.querySelector('#find [role=status]').textContent"


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
