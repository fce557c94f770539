"""Orders as people give them on the live page,
and pages elsewhere that try to give them in their name.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from chromium import Page, chromium
from serving import Page as Served, web

from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_SLOW = "standin/latency-0.4+steps-60"
_DIALOG = "document.querySelector('dialog.ask')"
#: What another page in the same browser can try.
_EVIL = """<!DOCTYPE html><title>evil</title><iframe src="{address}/batches/b"></iframe>
<iframe name="sink"></iframe>
<form id="form" target="sink" method="post" enctype="text/plain" action="{address}/api/orders">
<input name='{{"verb":"cancel","scope":"batch","name":"b","x":"' value='"}}'></form>
<script>
const order = JSON.stringify({{verb: "cancel", scope: "batch", name: "b"}}), to = "{address}/api/orders";
window.tried = Promise.allSettled([
  fetch(to, {{method: "POST", mode: "no-cors", credentials: "include", body: order}}),
  fetch(to, {{method: "POST", mode: "no-cors", credentials: "include", body: new Blob([order], {{type: "application/json"}})}}),
  fetch(to, {{method: "POST", credentials: "include", body: order, headers: {{"Content-Type": "application/json", "X-Batchd-Key": "0"}}}}),
  fetch(to + "?verb=cancel&scope=batch&name=b", {{mode: "no-cors", credentials: "include"}}),
  fetch("{address}/session", {{credentials: "include"}}).then(r => r.json()),
]).then(all => all.map(each => each.status + (each.value && each.value.type ? " " + each.value.type : "")));
document.getElementById("form").submit();
</script>"""


@contextmanager
def elsewhere(page: str, seen: list[str]) -> Iterator[str]:
    """Serve a page at another port of this host; ``seen``: the cookies that browsers show it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _allow(spool: Spool) -> None:
    config = spool.folder / "config.toml"
    price = "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n"
    more = f'\n[models."{_SLOW}"]\n{price}\n[web]\norders = true\n'
    config.write_text(config.read_text() + more)


def _drop(spool: Spool) -> None:
    tasks = [{"first_prompt": f"do {n}", "model": _SLOW} for n in range(3)]
    spool.write("b.json", tasks).rename(spool.folder / "inbox" / "b.json")


async def _signed_in(page: Page, served: Served, at: str) -> None:
    await page.look(1280, 900)
    await page.open(served.address + at)
    await page.click("#token")
    await page.type(served.token)
    await page.key("Enter")
    await page.until("document.querySelector('.bar-top')")


async def _ordered(page: Page, verb: str, said: str) -> None:
    """Click on an order, say yes, and read what came of it."""
    await page.until(f"document.querySelector('.content [data-order={verb}]')")
    await page.click(f".content [data-order={verb}]")
    await page.until(f"{_DIALOG}.open && {_DIALOG}.querySelector('[data-yes]')")
    # Enter, pressed by habit, orders nothing.
    assert await page.evaluate("document.activeElement.textContent") == "No"
    await page.click("dialog.ask [data-yes]")
    await page.until(f"{_DIALOG}.textContent.includes({json.dumps(said)})")


def test_a_batch_is_paused_resumed_cancelled_and_run_again(spool: Spool) -> None:
    """Each button asks first; what comes of it is shown,
    and the page moves on by itself; a no orders nothing.
    """
    _allow(spool)

    async def go(served: Served) -> None:
        async with chromium() as page:
            await asyncio.to_thread(_drop, spool)
            await _signed_in(page, served, "/")
            await page.until("document.querySelector('#batches tbody a')")
            await page.click("#batches tbody a")
            await page.until("document.querySelector('[data-order=cancel]')")
            await page.click("[data-order=cancel]")
            await page.until(f"{_DIALOG}.textContent.includes('cannot be taken back')")
            await page.key("Enter")
            await page.until(f"!{_DIALOG}.open")
            await _ordered(page, "pause", "batch b is paused")
            await page.key("Escape")
            await page.until("document.querySelector('.notice')?.textContent.includes('is paused')")
            await _ordered(page, "resume", "batch b goes on")
            await page.key("Escape")
            await _ordered(page, "cancel", "3 tasks cancelled")
            await page.key("Escape")
            await _ordered(page, "retry", "b-2: 3 tasks of b queued again")
            await page.click("dialog.ask a")
            await page.until("location.pathname === '/batches/b-2'")
            # A browser without a key, as of before orders were allowed, shows the token again.
            await page.until("document.querySelector('.content [data-order=cancel]')")
            await page.evaluate("localStorage.clear()")
            await page.click(".content [data-order=cancel]")
            await page.until("document.getElementById('ask-token')")
            await page.type("not the token at all")
            await page.key("Enter")
            await page.until(f"{_DIALOG}.textContent.includes('This is not the token')")
            await page.type(served.token)
            await page.key("Enter")
            await page.until(f"{_DIALOG}.querySelector('[data-yes]')")
            assert not any("Content Security Policy" in error for error in page.errors)

    with spool.serving(), web(spool) as served:
        asyncio.run(go(served))


def test_another_page_in_the_browser_orders_nothing(spool: Spool) -> None:
    """A server at another port of this host is shown the session's cookie;
    its forms, requests and frames order nothing.
    """
    _allow(spool)
    seen: list[str] = []

    async def go(served: Served) -> None:
        async with chromium() as page:
            await asyncio.to_thread(_drop, spool)
            await _signed_in(page, served, "/batches/b")
            with elsewhere(_EVIL.format(address=served.address), seen) as address:
                await page.open(address)
                tried = await page.evaluate("window.tried")
                assert tried[2:5:2] == ["rejected", "rejected"], tried
                refused = "[...document.querySelectorAll('iframe')].map(f => f.contentDocument && f.contentDocument.title)"
                assert set(await page.evaluate(refused)) <= {None, ""}
                assert any("frame" in error.lower() for error in page.errors), page.errors

    with spool.serving(), web(spool) as served:
        asyncio.run(go(served))
        assert served.get("/api/batches/b")["batch"]["cancelled"] == 0
        stolen = next(cookie for cookie in seen if f"batchd-web-{served.port}" in cookie)
        assert served.ask("/api/overview", token=None, Cookie=stolen)[0].status == 200
        body = json.dumps({"verb": "cancel", "scope": "batch", "name": "b"}).encode()
        headers = {"Cookie": stolen, "Origin": served.address, "Content_Type": "application/json"}
        answer, _ = served.ask("/api/orders", method="POST", token=None, body=body, **headers)
        assert answer.status == 403
    assert '"command_done"' not in (spool.folder / "daemon.log").read_text()
