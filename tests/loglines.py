"""The log of a process that may be in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def logged(log: Path, event: str = "") -> list[dict[str, Any]]:
    """Return the whole lines that are JSON, of one kind where ``event`` names it;
    none where there is no log yet.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    # Behind the last newline is what a process is about to write.
    whole = text.split("\n")[:-1]
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole if line.startswith("{")]
    return [line for line in lines if not event or line["event"] == event]
