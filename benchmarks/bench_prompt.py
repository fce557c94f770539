"""Tokens of a first request's system prompt and tool schemas (o200k),
beside other agents' as measured.
"""

from __future__ import annotations

import sys

from harness import row

from batchd import tokens
from batchd.agent import prompts
from batchd.records import Task

#: Measured on 2026-11-24 on the same stand-in server.
OTHERS = {"mini-swe-agent": 1045, "easy-llm-cli": 6707, "codex": 8231, "qwen-code": 16656}
FACTS = (
    "Machine: Debian GNU/Linux 13, x86_64; you are user task, directory /task. "
    "Here are python3, node, git, gcc, make, curl; not here: python, docker. No network."
)


def main() -> int:
    """Count and print."""
    task = Task(id="001", first_prompt="", model="a/b")
    schemas = tokens.count_tools(prompts.tools(stays=True))
    native = schemas + tokens.count(prompts.system(task, FACTS, text=False, stays=True))
    text = tokens.count(prompts.system(task, FACTS, text=True, stays=True))
    row("system prompt and tool schemas", f"{native} tokens", "≤ 700", held=native <= 700)
    row("  under the text protocol", f"{text} tokens", "≤ 700", held=text <= 700)
    for name, count in OTHERS.items():
        row(f"  {name}", f"{count} tokens", "", held=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
