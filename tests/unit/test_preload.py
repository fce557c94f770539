"""What workers share: loaded once, in a process of its own here."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import batchd.pool.preload
from batchd import llm
print("openai" in sys.modules, issubclass(sys.modules["httpx_aiohttp"].Httpx2AiohttpClient, llm.transport()))
"""


def test_of_the_sdk_workers_load_its_client_alone() -> None:
    """The whole of it is 22 MB, and a third of what they load. This fails where a new version of
    the SDK has its client elsewhere: batchd then works as well, and starts later.
    """
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
