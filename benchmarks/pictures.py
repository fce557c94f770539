"""The pictures of README.md, drawn from a spool at work
with the stand-in model: `make pictures`.

`top.svg` is the screen of `batchd top` in tmux, as rich draws it; `report.png` is the report on a
batch, in Chromium. Run it again after their looks have changed: neither is drawn by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import Daemon
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

# The browser is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
import standin
from chromium import chromium

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
#: What a repository carries for a picture, in bytes.
MOST = 150_000
COLUMNS, LINES = 130, 27
#: How long the picture of `top` is waited for, and the batch (seconds).
WORK_S, PATIENCE_S = 28.0, 240.0
#: The terminal's colours, as the pages have them in the dark: background, text, and the eight.
THEME = TerminalTheme(
    (22, 21, 19),
    (236, 235, 231),
    [
        (74, 71, 66),
        (239, 111, 99),
        (47, 156, 140),
        (224, 160, 60),
        (106, 166, 232),
        (181, 143, 219),
        (92, 201, 184),
        (236, 235, 231),
    ],
)
#: A font that the reader has: rich's own is fetched from elsewhere.
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace"
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


def screen(daemon: Daemon) -> str:
    """Return what `batchd top` shows once it has looked for a while, with its colours."""
    tmux = ["tmux", "-u", "-f", "/dev/null", "-S", str(daemon.spool / "tmux")]
    config = str(daemon.spool / "config.toml")
    command = ["env", "LC_ALL=C.UTF-8", sys.executable, "-m", "batchd", "--config", config, "top"]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    subprocess.run([*tmux, "new-session", "-d", *size, *command], check=True)
    try:
        time.sleep(WORK_S)
        return subprocess.check_output([*tmux, "capture-pane", "-e", "-N", "-p"], text=True)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def drawn(shown: str) -> str:
    """Return a screen as an SVG, in whatever font the reader has."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown.rstrip("\n")), no_wrap=True, crop=True)
    svg = console.export_svg(title="batchd top", theme=THEME, unique_id="top")
    # Its font, and its own name, lie elsewhere in the net.
    kept = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return kept.replace("Fira Code", FONT)


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
