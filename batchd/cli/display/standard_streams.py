"""The standard streams, made fit for use:
the process that starts batchd may have closed them, or may not use UTF-8.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys

_ERRORS = "batchd.escaped"


def repair() -> None:
    """Put /dev/null where a standard stream is closed,
    and see to it that no letter is too much for one.

    The number of a closed one would go to the next file that is opened, be it the log or the store,
    and a child would find that as its output.
    """
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


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Return what an encoding lacks as ``\u2192``: people can read that,
    and within JSON it means the same.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
