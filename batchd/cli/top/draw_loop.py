"""What turns: look, draw, wait for a key."""

from __future__ import annotations

import sys
from pathlib import Path

from batchd.cli.display import formatting, glyphs
from batchd.cli.top.canvas import Canvas
from batchd.cli.top.key_orders import OrderSender
from batchd.cli.top.screen import TopScreen
from batchd.cli.top.screen import once as whole
from batchd.cli.top.terminal import StopRequested, Terminal
from batchd.cli.top.watching import LATELY, SpoolPoller
from batchd.observe.snapshot import Observer

#: Without anything to do, it looks after itself so often (seconds).
_IDLE_S = 60.0


def run(state: Path, interval_s: float) -> int:
    """Show how things stand until a key or a signal ends it; return the exit code."""
    canvas = Canvas(ascii_only=glyphs.ascii_only(sys.stdout.encoding))
    terminal = Terminal(sys.stdin.fileno(), sys.stdout.fileno())
    watcher = SpoolPoller(state, interval_s, terminal.wake)
    desk = OrderSender(state, terminal.wake)
    screen = TopScreen(give=desk.give, answer=lambda: desk.answer)
    try:
        with terminal:
            watcher.start()
            _turn(terminal, watcher, screen, canvas, desk)
    except StopRequested as ended:
        return 128 + ended.number
    return 0


def _turn(
    terminal: Terminal, watcher: SpoolPoller, screen: TopScreen, canvas: Canvas, desk: OrderSender
) -> None:
    while True:
        if watcher.failure:
            raise watcher.failure
        sight = watcher.sight
        screen.learn(sight)
        watcher.wish(screen.wish)
        width, height = terminal.size
        terminal.show(canvas.render(screen.draw(sight, width, height), width))
        for key in terminal.wait(_IDLE_S):
            if key == "redraw":
                terminal.forget()
            desk.seen()
            if not screen.key(key, sight):
                return
            if screen.urgent:
                break  # what was typed on before the question was read answers nothing


def once(state: Path) -> int:
    """Print how things stand now."""
    with Observer(state, lately=LATELY) as observer:
        snapshot = observer.look()
    canvas = Canvas(
        ascii_only=glyphs.ascii_only(sys.stdout.encoding),
        styled=sys.stdout.isatty() and formatting.colours_wanted(),
    )
    store = formatting.store_path(state).exists()
    width = formatting.terminal_width()
    print(*canvas.render(whole(snapshot, store, width), width), sep="\n")
    return 0
