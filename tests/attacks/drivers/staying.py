"""Runs shell commands of one task as a model does, what they leave running kept,
as the JSON on its input asks for; prints how they ended.

A command that begins with ``file:`` is a path whose first line is read
as the file tool does, one that begins with ``check:`` runs as a check.
"""

import asyncio
import json
import sys

from batchd.agent import tools
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox


async def main() -> None:
    """Run them one after another in one place."""
    asked = json.load(sys.stdin)
    network = tuple(asked["network"])
    sandbox = Sandbox(SandboxPolicy(network=network or False, private_hosts=network))
    opening = sandbox.open(asked["folder"], fresh=True, network=network, env={}, tmp=asked["tmp"])
    ends: list[object] = []
    async with await opening as place:
        for command in asked["commands"]:
            if command.startswith("file:"):
                request = tools.ToolRequest(
                    "read_file", {"path": command.removeprefix("file:"), "lines": 1}
                )
                output = await tools.run(request, place, asked["timeout_s"])
                ends.append([output.exit_code, output.text, []])
            elif command.startswith("check:"):
                async with place.apart() as apart:
                    text = command.removeprefix("check:")
                    ran = await apart.shell(text, timeout_s=asked["timeout_s"])
                ends.append([ran.exit_code, ran.output, []])
            else:
                ran = await place.shell(command, timeout_s=asked["timeout_s"], stays=True)
                ends.append([ran.exit_code, ran.output, ran.left])
    print(json.dumps(ends))


asyncio.run(main())
