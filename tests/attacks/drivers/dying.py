"""Keeps three agents of a task with a list of hosts busy until it is killed.

Arguments: the directory, the seconds of a sleep.
"""

import asyncio
import sys

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox


async def main() -> None:
    """Run commands that all run out of time."""
    hosts = ("a.example",)
    sandbox = Sandbox(SandboxPolicy(network=hosts))
    async with await sandbox.open(sys.argv[1], fresh=True, network=hosts, env={}) as place:
        print("ready", flush=True)

        async def agent() -> None:
            while True:
                await place.run(["sleep", sys.argv[2]], timeout_s=0.05)

        await asyncio.gather(*(agent() for _ in range(3)))


asyncio.run(main())
