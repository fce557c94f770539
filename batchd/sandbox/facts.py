"""The one line of facts about the sandbox that a model is given, so that it need not guess."""

from __future__ import annotations

import platform

#: How long the answer may take (seconds).
PATIENCE_S = 30.0
#: Long enough that task after task need not ask again,
#: short enough to notice what is installed (seconds).
KEPT_S = 600.0

#: Named where they are there.
_TOOLS = "python3 python pip node npm git gcc g++ make cmake go cargo java ruby perl php sqlite3 curl wget jq"
#: Named where they are missing: models take them for granted.
_EXPECTED = "python3 python pip node npm git gcc make curl"

#: Prints the system's name, then the tools that are there, a line each.
_SCRIPT = (
    '(. /usr/lib/os-release || . /etc/os-release; echo "$PRETTY_NAME") 2>/dev/null || uname -s\n'
    f"for tool in {_TOOLS}; do command -v $tool >/dev/null && echo $tool; done; true"
)
COMMAND = ("/bin/sh", "-c", _SCRIPT)


def line(answer: str, *, user: str, directory: str, network: str) -> str:
    """Return the facts, given what ``COMMAND`` printed."""
    system, *tools = answer.splitlines() or [""]
    missing = [tool for tool in _EXPECTED.split() if tool not in tools]
    parts = [
        f"{system or 'Linux'} on {platform.machine()}",
        f"user {user}, no root or sudo",
        f"working directory {directory}",
        f"tools: {', '.join(tools)}" if tools else "",
        f"not installed: {', '.join(missing)}" if missing else "",
        network,
    ]
    return "; ".join(part for part in parts if part) + "."
