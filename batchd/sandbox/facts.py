"""The one line of facts about the sandbox that a model is told, so that it need not guess."""

from __future__ import annotations

import platform

#: Named where they are there.
_TOOLS = (
    *(
        "python3",
        "python",
        "pip",
        "node",
        "npm",
        "git",
        "gcc",
        "g++",
        "make",
        "cmake",
        "go",
        "cargo",
    ),
    *("java", "ruby", "perl", "php", "sqlite3", "curl", "wget", "jq"),
)
#: Named where they are missing: models take them for granted.
_EXPECTED = ("python3", "python", "pip", "node", "npm", "git", "gcc", "make", "curl")

#: Prints the system's name, then the tools that are there, a line each.
SCRIPT = (
    '(. /usr/lib/os-release || . /etc/os-release; echo "$PRETTY_NAME") 2>/dev/null || uname -s\n'
    f"for tool in {' '.join(_TOOLS)}; do command -v $tool >/dev/null && echo $tool; done; true"
)


def line(answer: str, *, user: str, directory: str, network: str, lasting_tmp: bool) -> str:
    """Return the facts, given what ``SCRIPT`` printed."""
    system, *tools = answer.splitlines() or [""]
    missing = [tool for tool in _EXPECTED if tool not in tools]
    parts = [
        f"{system or 'Linux'} on {platform.machine()}",
        f"user {user}, no root or sudo",
        f"working directory {directory}",
        f"tools: {', '.join(tools)}" if tools else "",
        f"not installed: {', '.join(missing)}" if missing else "",
        network,
        "" if lasting_tmp else "/tmp is emptied after each command",  # noqa: S108 (text)
    ]
    return "; ".join(part for part in parts if part) + "."
