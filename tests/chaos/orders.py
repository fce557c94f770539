"""Orders by the command line, as people give them, some given up with Ctrl-C; none may hang."""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from arena import Arena

#: Exit codes of a command: done, some task did not complete, wrong use, not possible here; Ctrl-C.
_CODES = frozenset({0, 1, 2, 3, 130, -signal.SIGINT})


@dataclass(eq=False)
class Order:
    """A command under way."""

    arguments: Sequence[str]
    given: float
    process: subprocess.Popen[bytes]
    #: What it prints: into a file, which has room for it whenever it is read.
    printed: IO[bytes]
    #: When it is to be given up; None: it is waited for.
    give_up: float | None
    ended: Callable[[Order], None]
    #: Whether it cannot have been taken:
    #: the daemon was stopped from before it was given until its giver had gone.
    unheard: bool = False
    code: int | None = None
    output: str = ""
    gone: float = 0.0

    @property
    def text(self) -> str:
        """What was typed."""
        return f"batchd {' '.join(self.arguments)}"

    @property
    def in_doubt(self) -> bool:
        """Whether it may have been carried out: it was neither acknowledged nor refused."""
        return self.code not in {0, 2} and not self.unheard

    @property
    def broke(self) -> bool:
        """Whether it shows a traceback;
        Python itself shows one where Ctrl-C comes before the command has begun.
        """
        interrupted = self.output.rstrip().endswith("KeyboardInterrupt")
        return "Traceback" in self.output and not interrupted


class Orders:
    """Gives orders in an arena and waits for their ends, without standing still meanwhile."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.rng = random.Random(0)
        self.under_way: list[Order] = []
        #: All that have ended, oldest first.
        self.done: list[Order] = []

    def give(
        self,
        *arguments: str,
        give_up_share: float = 0.0,
        ended: Callable[[Order], None] = lambda _: None,
    ) -> Order:
        """Give an order;
        ``give_up_share`` is how probable it is that its giver changes his mind.
        """
        now = time.monotonic()
        give_up = None
        if self.rng.random() < give_up_share:
            give_up = now + self.rng.choice((0.05, 0.3, 0.6, 2.0))
        printed = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed once the order has ended)
        process = subprocess.Popen(
            self._arena.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=self._arena.folder,
            env=self._arena.environment,
        )
        order = Order(arguments, now, process, printed, give_up, ended)
        self.under_way.append(order)
        return order

    def look(self, now: float, limit_s: float) -> list[str]:
        """Give up what is to be given up, note what has ended; return complaints."""
        complaints = []
        for order in list(self.under_way):
            if order.give_up is not None and now >= order.give_up:
                order.process.send_signal(signal.SIGINT)
                order.give_up = None
            code = order.process.poll()
            if code is None and now - order.given <= limit_s:
                continue
            if code is None:
                order.process.kill()
                complaints.append(f"{order.text}: no answer within {now - order.given:.0f} s")
            self._end(order, now)
            if code is not None and (code not in _CODES or order.broke):
                complaints.append(f"{order.text}: ended with {code}: {order.output[-1500:]}")
        return complaints

    def _end(self, order: Order, now: float) -> None:
        self.under_way.remove(order)
        order.process.wait()
        with order.printed as printed:
            printed.seek(0)
            order.output = printed.read().decode(errors="replace")
        order.code, order.gone = order.process.returncode, now
        self.done.append(order)
        order.ended(order)

    def clear(self) -> None:
        """Kill what is under way."""
        for order in self.under_way:
            order.process.kill()
            order.process.communicate()
