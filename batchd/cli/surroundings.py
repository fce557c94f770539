"""The process's surroundings, made fit for use: who starts batchd may have closed the standard
streams, use another encoding than UTF-8, or ignore that a child ends.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys

_ERRORS = "batchd.escaped"


def repair() -> None:
    """Put /dev/null where a standard stream is closed, see to it that no letter is too much for
    one, and that the ends of children are reported, with how they ended.
    """
    # The number of a closed stream would go to the next file that is opened, be it the log or the
    # store, and a child would find that as its output.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest free number: this one
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 (it is to stay open)
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 (as above)
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 (as above)
    codecs.register_error(_ERRORS, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    # Where the signal is ignored, the kernel reports none of them: no sandbox would be seen to
    # work. Where it is held back, the fork server learns of none: the daemon's end would wait.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Return what an encoding lacks as ``\u2192``: people can read that,
    and within JSON it means the same.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
