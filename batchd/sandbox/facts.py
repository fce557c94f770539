"""The one line of facts about the sandbox that a model is given, so that it need not guess."""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Callable, Sequence

from batchd.sandbox.command_run import CommandEnd

#: What places of one kind answered, and when.
Known = dict[tuple[object, ...], tuple[str, float]]
#: How long the answer may take (seconds).
PATIENCE_S = 30.0
#: Long enough that task after task need not ask again,
#: short enough to notice what is installed (seconds).
_KEPT_S = 600.0

#: Named where they are there.
_TOOLS = "python3 python pip node npm git gcc g++ make cmake go cargo java ruby perl php sqlite3 curl wget jq"
#: Named where they are missing: models take them for granted.
_EXPECTED = "python3 python pip node npm git gcc make curl"

#: Prints the system's name, then the tools that are there, a line each.
SCRIPT = (
    '(. /usr/lib/os-release || . /etc/os-release; echo "$PRETTY_NAME") 2>/dev/null || uname -s\n'
    f"for tool in {_TOOLS}; do command -v $tool >/dev/null && echo $tool; done; true"
)


def line(answer: str, *, user: str, directory: str, network: str) -> str:
    """Return the facts, given what ``SCRIPT`` printed."""
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


async def known(
    answers: Known,
    key: tuple[object, ...],
    line: Callable[[str], str],
    run: Callable[[Sequence[str]], Awaitable[CommandEnd]],
) -> str:
    """Return the line of a place, asked for once for all of its ``key``;
    ``run`` runs a command there, and ``line`` makes the line of what that prints.

    Raises ``SandboxError``.
    """
    now = time.monotonic()
    answer, asked_at = answers.get(key, ("", -_KEPT_S))
    if now - asked_at >= _KEPT_S:
        ran = await run(["/bin/sh", "-c", SCRIPT])
        answer = ran.output if ran.exit_code == 0 else ""
        if answer:
            answers[key] = (answer, now)
    return line(answer)
