"""A batch's report as it lies in its folder,
under a policy of its own, with the way back above it.
"""

from __future__ import annotations

import html
import os
import stat
from pathlib import Path
from urllib.parse import quote

#: A report larger than this is opened from its folder.
_MAX_REPORT_BYTES = 64 << 20
#: A report runs its own scripts, but without an origin:
#: it can ask for nothing, and reads no other page.
POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Where a report's page begins: all that is before it is batchd's own.
_BEGINNING = b"<body>"


def page(folder: Path, batch: str) -> bytes | None:
    """Return the report in a batch's folder, with links back; None: there is none."""
    data = _file(folder / "report.html")
    if data is None:
        return None
    address, name = html.escape(quote(f"/batches/{batch}")), html.escape(batch)
    # In classes that every report knows: its policy takes no style but its own.
    back = f'<header><nav class="brand" aria-label="Back"><span><a href="/">Overview</a> / <a href="{address}">{name}</a></span></nav></header>'
    return data.replace(_BEGINNING, _BEGINNING + back.encode(), 1)


def _file(path: Path) -> bytes | None:
    """Return a regular file's content; None for anything else: agents may have worked near it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        return (
            file.read()
            if stat.S_ISREG(found.st_mode) and found.st_size <= _MAX_REPORT_BYTES
            else None
        )
