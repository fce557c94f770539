"""Runs commands in a fresh sandbox of batchd's,
as the JSON on its input asks for, and prints how they ended.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return it with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


async def main() -> None:
    """Run them one after another in one place."""
    asked = _frozen(json.load(sys.stdin))
    sandbox = Sandbox(SandboxPolicy(**_frozen(asked["policy"])))
    opening = sandbox.open(asked["folder"], fresh=True, network=asked["network"], env=asked["env"])
    async with await opening as place:
        ends = [await place.run(argv, timeout_s=asked["timeout_s"]) for argv in asked["commands"]]
        print(json.dumps([[e.exit_code, e.output, e.timed_out, e.seconds] for e in ends]))


asyncio.run(main())
