"""Whether the daemon is of the same batchd as who asks:
an upgrade changes commands at once, a daemon when it is restarted.
"""

from __future__ import annotations

import re

from batchd import __version__


def differs(version: str) -> str:
    """Return what to do about a daemon of another version, in one line; empty: nothing.

    ``version``: what it says; empty: it is too old to say.
    """
    if version == __version__:
        return ""
    which = f"batchd {version}" if version else "an older batchd"
    if _numbers(version) > _numbers(__version__):
        return (
            f"The daemon is {which}, newer than this program ({__version__}): use the daemon's "
            "program, or start this one again."
        )
    return (
        f"The daemon is {which}, this program is {__version__}: restart the daemon (`systemctl restart batchd`,"
        " or stop it and `batchd serve`). Its tasks go on where they were."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
