"""What workers share: loaded once, in a process of its own here."""

from __future__ import annotations

import subprocess
import sys

WORKERS = """
import sys
import batchd.pool.preload
loaded = "openai" in sys.modules
import openai
from batchd import llm
print(loaded, llm.transport() is openai.DefaultAioHttpClient)
"""
OTHERS = """
import sys
import batchd.cli.serve, batchd.cli.status, batchd.daemon, batchd.llm, batchd.web.report
print("openai" in sys.modules)
"""


def _said(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_sdk_is_loaded_before_workers_are_forked_and_there_alone() -> None:
    """Workers share its client for HTTP; the daemon, and commands, have nothing of it."""
    assert _said(WORKERS) == "True True\n"
    assert _said(OTHERS) == "False\n"
