"""Runs commands of one task, with a /tmp that lasts, as the JSON on its input asks for;
prints how they ended, limits included.
"""

import asyncio
import json
import sys

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox, Workplace


async def main() -> None:
    """Run them one after another;
    at each null the place is closed and opened again, as after parking or a restart.
    """
    asked = json.load(sys.stdin)
    sandbox = Sandbox(SandboxPolicy(**asked["policy"]))

    async def opened() -> Workplace:
        return await sandbox.open(
            asked["folder"], fresh=asked["fresh"], network=False, env={}, tmp=asked["tmp"]
        )

    ends = []
    place = await opened()
    for argv in asked["commands"]:
        if argv is None:
            await place.close()
            place = await opened()
            continue
        if isinstance(argv, dict):
            async with place.apart() as where:
                end = await where.run(argv["apart"], timeout_s=asked["timeout_s"])
        else:
            end = await place.run(argv, timeout_s=asked["timeout_s"])
        ends.append([end.exit_code, end.output, end.excess, end.killed, end.seconds])
    print(json.dumps([ends, await place.facts()]))
    await place.close()


asyncio.run(main())
