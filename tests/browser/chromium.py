"""A headless Chromium, driven over its own protocol:
real clicks and keys, and an eye on what it asks the network for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
from patience import PATIENCE_S

#: How long a page has to say whether something holds; asked again then.
_ANSWER_S = 2.0
#: What Debian and others call it; the first is all that tests need.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "ArrowRight": (39, ""),
    "ArrowLeft": (37, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
    "Home": (36, ""),
}


def executable() -> str | None:
    """Return where a Chromium is; None: there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._session = ""
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        #: Errors on the console, exceptions, and what the page's policy refused.
        self.errors: list[str] = []
        #: Addresses that it asked for.
        self.requests: list[str] = []
        self._listening = asyncio.ensure_future(self._listen())

    async def begin(self) -> None:
        """Open the tab."""
        target = await self._call("Target.createTarget", url="about:blank")
        attached = await self._call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            await self._call(f"{domain}.enable")

    async def open(self, address: str) -> Self:
        """Go somewhere, and wait until it is loaded."""
        await self._call("Page.navigate", url="about:blank")
        await self._call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.protocol !== 'about:'")
        return self

    async def evaluate(self, script: str) -> Any:
        """Return what an expression is worth; promises are awaited."""
        found = await self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression holds; fail where it does not."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._holds(script):  # noqa: ASYNC110 (the page reports nothing)
                await asyncio.sleep(0.02)

    async def _holds(self, script: str) -> bool:
        """Whether an expression holds. A page that becomes another one in this instant says so, or
        never answers.
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                return bool(await self.evaluate(f"Boolean({script})"))
        except TimeoutError:
            return False
        except RuntimeError as error:
            if "navigated" in str(error):
                return False
            raise

    async def click(self, selector: str, *, index: int = 0, dx: float = 0.5) -> None:
        """Click on an element with the mouse, at ``dx`` of its width; scrolled into sight first."""
        x, y = await self.evaluate(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{index}];"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            f" return [r.left + r.width * {dx}, r.top + r.height / 2]; }})()"
        )
        await self.mouse(x, y)

    async def mouse(self, x: float, y: float) -> None:
        """Click at a place."""
        await self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            await self._call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def key(self, name: str) -> None:
        """Press a key."""
        code, text = _KEYS.get(name, (ord(name[0].upper()), name))
        more = {"text": text} if text else {}
        await self._call(
            "Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **more
        )
        await self._call(
            "Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code
        )

    async def type(self, text: str) -> None:
        """Type a text where the focus is."""
        await self._call("Input.insertText", text=text)

    async def look(
        self, width: int, height: int, *, dark: bool = False, scale: float = 1.0, media: str = ""
    ) -> None:
        """Set the size of the window, its colours, and the medium, ``print`` for example."""
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    async def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a picture of the page."""
        size = (await self._call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 9000)}
        more: dict[str, Any] = {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}}
        shot = await self._call("Page.captureScreenshot", format="png", **(more if whole else {}))
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def accessible(self) -> list[dict[str, Any]]:
        """Return the accessibility tree, as a screen reader has it."""
        nodes: list[dict[str, Any]] = (await self._call("Accessibility.getFullAXTree"))["nodes"]
        return [node for node in nodes if not node.get("ignored")]

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json(
            {"id": self._number, "method": method, "params": parameters, **session}
        )
        async with asyncio.timeout(PATIENCE_S):
            return await answer

    async def _listen(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if waiting := self._answers.pop(content.get("id", 0), None):
                if waiting.done():
                    continue  # nobody waits any more
                if "error" in content:
                    waiting.set_exception(RuntimeError(str(content["error"])))
                else:
                    waiting.set_result(content["result"])
            elif "method" in content:
                self._note(content["method"], content["params"])

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif (method == "Log.entryAdded" and parameters["entry"]["level"] == "error") or (
            method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning"}
        ):
            self.errors.append(str(parameters))

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """Run a browser of one's own; it shows an empty page."""
    path = executable()
    assert path, "there is no Chromium: make test installs chromium-headless-shell"
    with tempfile.TemporaryDirectory(prefix="batchd-browser-", ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            path,
            *("--headless", "--remote-debugging-port=0", "--disable-gpu", "--hide-scrollbars"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
            # Its own sandbox does not work as root, nor in most containers; the page is ours.
            *("--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={home}"),
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
            process_group=0,
        )
        try:
            address = await _address(process, Path(home, "DevToolsActivePort"))
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(address, max_msg_size=0) as socket,
            ):
                page = Page(socket)
                try:
                    await page.begin()
                    yield page
                finally:
                    await page.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own group: renderers and all
            await process.wait()


async def _address(process: asyncio.subprocess.Process, file: Path) -> str:
    """Return where it listens, once it has written that down."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert process.returncode is None, "Chromium did not start"
            with contextlib.suppress(FileNotFoundError):
                lines = (await asyncio.to_thread(file.read_text)).split()
                if len(lines) == 2:
                    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.02)
