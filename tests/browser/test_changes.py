"""What tasks have changed and made, in a real browser:
on the report and on the live page, at a telephone's width too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from chromium import Page, chromium
from pages import HOSTILE, details
from serving import web
from stored import Night
from test_web import browse as live

from batchd.cli import main
from batchd.records import Change, Patch
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_LONG = 5000
_ROWS = "document.querySelectorAll('.diff .row').length"
_OPEN = "[...document.querySelectorAll('.diff .file[open]:not([hidden]) .path')].map(e => e.textContent)"
_SHOWN = "[...document.querySelectorAll('.diff .file:not([hidden]) .path')].map(e => e.textContent)"
_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
#: Nothing that a model wrote has run, or become an element.
_PWNED = "[window.pwned || 0, document.querySelectorAll('.diff img, .diff svg, .diff script, .prose img, .prose script').length]"


def of(path: str, *lines: str) -> bytes:
    """Return the changes of one file that is new."""
    body = "".join(f"+{line}\n" for line in lines)
    return f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex 0..1\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n{body}".encode()


def patched(**files: tuple[str, ...]) -> Patch:
    """Return a patch of new files."""
    changes = tuple(Change(path=p, added=len(lines), removed=0) for p, lines in files.items())
    return Patch(changes=changes, data=b"".join(of(p, *lines) for p, lines in files.items()))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A night's work of tasks with clones, its report, and files that a task has made."""
    evil = patched(**{HOSTILE[0]: HOSTILE, "b.html": HOSTILE})
    small = {f"src/f{n}.py": (f"value_{n} = {n}", "print('hello')") for n in range(12)}
    night = Night(
        tmp_path_factory.mktemp("changes"),
        8,
        hostile=HOSTILE,
        patches={
            0: evil,
            4: patched(**small),
            5: patched(**{"long.txt": tuple(f"line {n}" for n in range(_LONG))}),
            6: Patch(changes=evil.changes, data=evil.data, withheld=True),
        },
    )
    night.write()
    (night.folder / "config.toml").write_text("")
    own = night.outbox / "008"
    own.mkdir()
    (own / "notes.txt").write_text("# what it\n<script>window.pwned = 1</script>\n")
    assert main(["--config", str(night.folder / "config.toml"), "report", night.name]) == 0
    return night


def report(
    night: Night, task: str, read: Callable[[Page], Awaitable[None]], *, width: int = 1280
) -> None:
    """Open the report at a task, read it, and hold it to silence."""

    async def go() -> None:
        async with chromium() as page:
            await page.look(width, 900)
            await page.open((night.outbox / "report.html").as_uri())
            await page.until("document.querySelector('.grid tbody .link')")
            name = f"[...document.querySelectorAll('.grid tbody .link')].findIndex(e => e.textContent.endsWith('{task}'))"
            await page.click(".grid tbody .link", index=await page.evaluate(name))
            await page.until("document.querySelector('dialog[open] .facts')")
            await read(page)
            assert page.errors == []
            assert await page.evaluate(_PWNED) == [0, 0]

    asyncio.run(go())


def test_a_patch_is_files_to_fold_and_search(night: Night) -> None:
    """The first are open, others closed; a search shows the files that hold it,
    with the lines marked; all fold at once.
    """

    async def read(page: Page) -> None:
        names = [f"src/f{n}.py" for n in range(12)]
        assert await page.evaluate(_SHOWN) == names
        assert await page.evaluate(_OPEN) == names[:8]
        assert await page.evaluate("document.querySelector('.diff .plus').textContent") == "+2"
        await page.click(".diff input")
        await page.type("value_11")
        await page.until(f"({_SHOWN}).length === 1")
        assert await page.evaluate(_SHOWN) == ["src/f11.py"]
        assert await page.evaluate(_OPEN) == ["src/f11.py"]
        hit = "[...document.querySelectorAll('.diff .row.hit')].map(e => e.textContent)"
        await page.until(f"({hit}).length === 1")
        assert await page.evaluate(hit) == ["+value_11 = 11"]
        buttons = "[...document.querySelectorAll('.diff .controls button')].map(e => e.textContent)"
        assert await page.evaluate(buttons) == ["Unfold all", "Fold all", "Copy the patch"]
        await page.click(".diff .controls button", index=1)
        assert await page.evaluate(_OPEN) == []

    report(night, "005", read)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_diff_of_five_thousand_lines_is_opened_in_parts(night: Night, width: int) -> None:
    """Closed at first; then 3,000 lines, and all of them by one more press;
    the page itself never scrolls sideways.
    """

    async def read(page: Page) -> None:
        assert await page.evaluate(_ROWS) == 0
        await page.click(".diff summary")
        await page.until(f"{_ROWS} > 2000")
        await page.click(".diff .rows button")
        # A hunk's head, and the mode of a new file.
        await page.until(f"{_ROWS} === {_LONG + 2}")
        assert not await page.evaluate(_WIDE)

    report(night, "006", read, width=width)


def test_what_is_hostile_in_a_patch_stays_text(night: Night) -> None:
    """Names and lines; of one that is withheld no line is in the page."""

    async def read(page: Page) -> None:
        assert await page.evaluate(_SHOWN) == [HOSTILE[0], "b.html"]
        row = "document.querySelectorAll('.diff .row')[2].textContent"
        assert await page.evaluate(row) == f"+{HOSTILE[0]}"

    report(night, "001", read)
    _, found = details(night.outbox / "report.html")
    withheld = [each["patch"] for each in found if each["patch"] and not each["patch"]["text"]]
    assert [each["said"] for each in withheld] == [
        ["Its patch holds a secret, and is not shown: 007.patch."]
    ]


def test_a_file_of_a_task_is_linked_where_a_browser_only_shows_it(night: Night) -> None:
    """A text is; what a browser would run is not: a page of a model's is none of ours."""

    async def read(page: Page) -> None:
        links = "[...document.querySelectorAll('dialog .files a')].map(e => e.getAttribute('href'))"
        assert await page.evaluate(links) == ["008/notes.txt"]

    report(night, "008", read)
    script = Path(__file__).parents[2].joinpath("batchd/web/assets/details.js").read_text()
    assert "htm" not in script.partition("const PLAIN")[2].partition(";")[0]


@pytest.fixture
def served(night: Night) -> Iterator[Spool]:
    """The same night, to be looked at by `batchd web`."""
    return Spool(night.folder)


def test_the_live_page_shows_the_patch_and_the_files(served: Spool, night: Night) -> None:
    """A file is shown as text, and saved as a file:
    whatever it holds, the browser has no reason to run any of it.
    """

    async def read(page: Page) -> None:
        await page.until("document.querySelector('.made summary')")
        await page.click(".made summary")
        await page.until("document.querySelector('.made pre')")
        shown = await page.evaluate("document.querySelector('.made pre').textContent")
        assert shown == (night.outbox / "008/notes.txt").read_text()
        assert await page.evaluate(_PWNED) == [0, 0]

    async def patch(page: Page) -> None:
        await page.until("document.querySelector('.diff .row')")
        assert await page.evaluate(_SHOWN) == [HOSTILE[0], "b.html", HOSTILE[0]]
        assert await page.evaluate(_PWNED) == [0, 0]

    with web(served) as page:
        live(page, read, at=f"/batches/{night.name}/008")
        live(page, patch, at=f"/batches/{night.name}/001", width=390)
        at = f"/api/batches/{night.name}/008"
        answer, data = page.ask(f"{at}/file?path=notes.txt")
        assert data == (night.outbox / "008/notes.txt").read_bytes()
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        for path in ("../008.json", "/etc/passwd", "", "other"):
            assert page.ask(f"{at}/file?path={path}")[0].status == 404
            assert page.ask(f"{at}/preview?path={path}")[0].status == 404
        (night.outbox / "008/notes.txt").rename(night.outbox / "kept")
        (night.outbox / "008/notes.txt").symlink_to("/etc/passwd")
        assert page.ask(f"{at}/file?path=notes.txt")[0].status == 404
        (night.outbox / "kept").replace(night.outbox / "008/notes.txt")
