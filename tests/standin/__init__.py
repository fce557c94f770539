"""A stand-in for model providers, for tests and benchmarks.

It speaks chat completions, OpenAI's Responses and Anthropic's Messages on loopback, a module each
in ``dialects``. ``demo`` replays recorded conversations, other model names ask for scripts, faults
and the rules of real models: see ``scripts``, ``faults`` and ``families``.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What finds it, and batchd, for ``python -m standin.server``.
PYTHONPATH = f"{ROOT}:{ROOT / 'tests'}"


def start(
    *options: str,
    environ: Mapping[str, str] = os.environ,
    popen: type[subprocess.Popen[str]] = subprocess.Popen,
) -> tuple[subprocess.Popen[str], str]:
    """Start the server as a process; return that, and its base URL."""
    process = popen(
        [sys.executable, "-m", "standin.server", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, "PYTHONPATH": PYTHONPATH},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]
