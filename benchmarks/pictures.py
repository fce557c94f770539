"""The pictures of README.md, drawn from a spool at work
with the stand-in model: `make pictures`.

`top.svg` is the screen of `batchd top`, cell by cell; `report.png` is the report on a batch, in
Chromium. Run it again after their looks have changed: neither is drawn by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import html
import importlib.resources
import itertools
import json
import os
import pty
import re
import select
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte
from harness import Daemon

# The browser is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
import standin
from chromium import chromium

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
#: What a repository carries for a picture, in bytes.
MOST = 150_000
COLUMNS, LINES = 130, 27
#: A cell, in points.
WIDE, HIGH, MARGIN = 8.4, 18, 16
#: How long the picture of `top` is waited for, and the batch (seconds).
WORK_S, PATIENCE_S = 18.0, 240.0
EMPTY = "\0"
PAPER, INK = "#161513", "#ecebe7"
#: The terminal's colours, as the pages have them in the dark.
COLOURS = {
    "black": "#4a4742",
    "red": "#ef6f63",
    "green": "#2f9c8c",
    "brown": "#e0a03c",
    "yellow": "#e0a03c",
    "blue": "#6aa6e8",
    "magenta": "#b58fdb",
    "cyan": "#5cc9b8",
    "white": "#ecebe7",
    "brightblack": "#8d8981",
}
CONFIG = """\
[agent]
model = "standin/demo"
[providers.standin]
base_url = "{base_url}"
tools = "text"
[pool]
processes = 2
agents_per_process = 4
[budget]
per_day_usd = 5.0
"""
PRICE = """
[models."standin/{model}"]
input_usd_per_mtok = 0.28
cached_input_usd_per_mtok = 0.028
output_usd_per_mtok = 0.42
"""
SLOW, STUBBORN = "latency-2+steps-8", "latency-1+steps-2"


@dataclass(frozen=True)
class Style:
    """How a cell looks."""

    ink: str
    paper: str
    bold: bool


def tasks() -> Iterator[dict[str, Any]]:
    """Yield the demo's own tasks, several times, and some whose check is never passed."""
    for number in (1, 2):
        yield {
            "id": f"greetings-{number}",
            "first_prompt": "Write hello.py, which greets in ten languages, and a test of it.",
            "model": f"standin/{STUBBORN}",
            "check": "echo 'two of ten greetings are missing'; exit 1",
            "limits": {"max_iterations": 2},
        }
    sample = importlib.resources.files("batchd.demo") / "task.json"
    names = ("primes", "adder", "fizzbuzz")
    for number in range(1, 11):
        for name, task in zip(names, json.loads(sample.read_text("utf-8"))["tasks"], strict=True):
            yield {**task, "id": f"{name}-{number}"}


def upgrades() -> Iterator[dict[str, Any]]:
    """Yield tasks that are at work for a while."""
    for name in ("requests", "numpy", "pillow", "urllib3", "pydantic", "attrs", "rich", "click"):
        prompt = f"Upgrade {name} to its latest release, and fix what breaks."
        yield {"id": name, "first_prompt": prompt, "model": f"standin/{SLOW}"}


@contextlib.contextmanager
def at_work() -> Iterator[Daemon]:
    """Run a daemon on two batches."""
    server, base_url = standin.start("--tokens-per-second", "60")
    spool = Path(tempfile.mkdtemp(prefix="batchd-pictures-"))
    prices = "".join(PRICE.format(model=model) for model in ("demo", SLOW, STUBBORN))
    daemon = Daemon(spool, CONFIG.format(base_url=base_url) + prices)
    try:
        _drop(spool, "games", {"tasks": [*tasks()], "parallel": 5, "budget_usd": 0.05})
        _drop(spool, "upgrades", {"tasks": [*upgrades()], "parallel": 3, "budget_usd": 2})
        yield daemon
    finally:
        daemon.process.terminate()
        daemon.process.wait()
        server.terminate()
        server.wait()


def _drop(spool: Path, name: str, batch: Mapping[str, Any]) -> None:
    draft = spool / name
    draft.write_text(json.dumps(batch), "utf-8")
    draft.rename(spool / "inbox" / f"{name}.json")


def screen(daemon: Daemon) -> pyte.Screen:
    """Return what `batchd top` shows once it has looked for a while."""
    shown = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(shown)
    pid, terminal = pty.fork()
    if pid == 0:
        config = str(daemon.spool / "config.toml")
        os.environ.update(TERM="xterm-256color", LANG="C.UTF-8", LC_ALL="C.UTF-8")
        os.execv(sys.executable, [sys.executable, "-m", "batchd", "--config", config, "top"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    until = time.monotonic() + WORK_S
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            stream.feed(os.read(terminal, 1 << 16))
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass
    os.waitpid(pid, 0)
    return shown


def drawn(shown: pyte.Screen) -> str:
    """Return a screen as an SVG: runs of cells of one look,
    each in its place, whatever font the reader has.
    """
    width, height = COLUMNS * WIDE + 2 * MARGIN, LINES * HIGH + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        "<title>batchd top, at work on two batches</title>",
        f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>',
        '<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14">',
    ]
    for line in range(LINES):
        cells = [shown.buffer[line][column] for column in range(COLUMNS)]
        column = 0
        for style, group in itertools.groupby(cells, key=_style):
            # A wide character has two cells, the second of which is empty.
            text = "".join(cell.data or EMPTY for cell in group)
            parts += _run(text, style, column, line)
            column += len(text)
    return "\n".join([*parts, "</g></svg>", ""])


def _style(cell: Any) -> Style:
    ink, paper = _colour(cell.fg, INK), _colour(cell.bg, PAPER)
    if cell.reverse:
        ink, paper = paper, ink
    return Style(ink=ink, paper=paper, bold=cell.bold)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name.removeprefix("bright"), COLOURS.get(name, f"#{name}"))


def _run(text: str, style: Style, column: int, line: int) -> Iterator[str]:
    """Yield the elements of some cells of one look; none for blanks."""
    x, y = MARGIN + column * WIDE, MARGIN + line * HIGH
    if style.paper != PAPER:
        wide = len(text) * WIDE
        yield f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{HIGH}" fill="{style.paper}"/>'
    bold = ' font-weight="700"' if style.bold else ""
    # Of several blanks an SVG shows one: what stands between them has a place of its own.
    for words in re.finditer(r"\S+(?: \S+)*", text):
        length = f'textLength="{len(words[0]) * WIDE:g}" lengthAdjust="spacingAndGlyphs"'
        place = f'x="{x + words.start() * WIDE:g}" y="{y + 13:g}"'
        yield f'<text {place} fill="{style.ink}"{bold} {length}>{html.escape(words[0].replace(EMPTY, ""))}</text>'


async def photographed(report: Path, target: Path) -> None:
    """Save what a reader of a report sees first."""
    async with chromium() as page:
        await page.look(1120, 860)
        await page.open(report.as_uri())
        await page.until("document.querySelector('canvas')")
        end = await page.evaluate(
            "document.getElementById('setbacks').getBoundingClientRect().bottom"
        )
        await page.look(1120, int(end) + 32)
        await asyncio.sleep(0.5)
        await page.screenshot(target, whole=False)


def main() -> int:
    """Draw both; fail where one is too large for a repository."""
    FOLDER.mkdir(exist_ok=True)
    with at_work() as daemon:
        (FOLDER / "top.svg").write_text(drawn(screen(daemon)), "utf-8")
        daemon.summary("games", PATIENCE_S)
        report = daemon.spool / "outbox" / "games" / "report.html"
        asyncio.run(photographed(report, FOLDER / "report.png"))
    large = [path for path in sorted(FOLDER.iterdir()) if path.stat().st_size > MOST]
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
