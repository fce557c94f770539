"""Loading modules: without looking for garbage among them, and with Ctrl-C when that is done."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Load everything that is imported within it as a whole.

    The collector waits, for nothing of it is garbage, and to look for it again and again takes a
    sixth of the time. So does SIGINT: what an extension is at as it comes,
    as pydantic at its validators, would lose it, and go on.
    """
    collecting = gc.isenabled()
    gc.disable()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
