"""``batchd completion``: what completes commands and options,
where a shell has not found it by itself.
"""

from __future__ import annotations

import argparse
import importlib.resources

#: The file of each shell, in ``data/completions``; ``generated.py`` makes them.
FILES = {"bash": "batchd.bash", "zsh": "_batchd"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=tuple(FILES))
    parser.epilog = (
        'In ~/.bashrc: eval "$(batchd completion bash)". '
        "For zsh: batchd completion zsh > DIR/_batchd, where DIR is in fpath."
    )


def run(args: argparse.Namespace) -> int:
    """Print it."""
    folder = importlib.resources.files("batchd") / "data" / "completions"
    print((folder / FILES[args.shell]).read_text("utf-8"), end="")
    return 0
