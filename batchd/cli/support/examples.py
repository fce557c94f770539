"""Examples for each command's ``--help``: lines that work as they stand,
with names of the reader's own put in.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": ("batchd init ~/spool",),
    "serve": ("batchd serve", "batchd --config ~/spool/config.toml serve"),
    "run": ("batchd run task.json", "batchd run --first 3 task.json"),
    "submit": (
        "batchd submit task.json --wait",
        "batchd submit --prompt 'Write tests.' --each 'src/*' --check 'make test'",
    ),
    "wait": ("batchd wait evening",),
    "status": ("batchd status", "batchd status evening", "batchd status evening/001"),
    "top": ("batchd top", "batchd top --once"),
    "logs": ("batchd logs evening/001", "batchd logs -f evening"),
    "cost": (
        "batchd cost --since today",
        "batchd cost evening --compare openai/gpt-6-luna anthropic/claude-haiku-5-5",
    ),
    "web": ("batchd web",),
    "report": ("batchd report evening", "batchd report --since yesterday --csv"),
    "diff": ("batchd diff evening/001",),
    "apply": ("batchd apply evening/001",),
    "estimate": ("batchd estimate task.json",),
    "check": ("batchd check",),
    "config": ("batchd config",),
    "trust": ("batchd trust ~/spool",),
    "notify": ("batchd notify", "batchd notify --test me"),
    "schema": ("batchd schema task",),
    "completion": ("batchd completion bash",),
    "cancel": ("batchd cancel evening", "batchd cancel evening/001"),
    "retry": ("batchd retry --failed evening",),
    "pause": ("batchd pause evening", "batchd pause --all"),
    "resume": ("batchd resume --all",),
    "priority": ("batchd priority evening 10",),
    "prune": ("batchd prune --older-than 30",),
    "tune": ("batchd tune budget.per_day_usd=20",),
    "invite": ("batchd invite node1 | ssh node1 batchd worker --join -",),
    "worker": ("batchd worker --join -",),
    "backup": ("batchd backup ~/batchd.backup",),
    "restore": ("batchd restore ~/batchd.backup",),
    "demo": ("batchd demo",),
}


class Help(argparse.HelpFormatter):
    """The help formatter: argparse's layout, but a paragraph of examples keeps its lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        fill = super()._fill_text
        kept = (part if "\n" in part else fill(part, width, indent) for part in parts)
        return "\n\n".join(kept)


def below(command: str, epilog: str | None) -> str:
    """Return what stands below a command's arguments: what it says itself, then its examples."""
    return "\n\n".join(filter(None, (epilog, shown(command))))


def shown(*commands: str) -> str:
    """Return a paragraph of some commands' examples."""
    lines = [line for command in commands for line in EXAMPLES[command]]
    head = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join((head, *(f"  {line}" for line in lines)))
