"""Commands on a terminal of their own, which somebody answers."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import sys
import time
from typing import Any

from patience import PATIENCE_S


def on_a_terminal(
    spool: Any, *arguments: str, answers: tuple[tuple[str, str], ...] = ()
) -> tuple[int, str]:
    """Run a command on a terminal of its own;
    give each answer when its question shows, after the answer before.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(spool.folder)
        os.execv(sys.executable, spool.command(*arguments))
    seen, waiting, deadline = "", list(answers), time.monotonic() + PATIENCE_S
    answered = 0
    with contextlib.suppress(OSError):  # a terminal whose other side is gone
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536).decode("utf-8", "replace")
            if waiting and (place := seen.find(waiting[0][0], answered)) >= 0:
                answered = place + len(waiting[0][0])
                os.write(terminal, waiting.pop(0)[1].encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), seen
