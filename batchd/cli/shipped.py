"""What editors, shells and other programs need of batchd: ``batchd schema`` prints the formats,
``batchd completion`` what completes commands and options, where a shell has not found it by itself.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

#: The file of each shell, in ``data/completions``; ``generated.py`` makes them.
COMPLETIONS = {"bash": "batchd.bash", "zsh": "_batchd"}
KINDS = ("task", "result", "summary", "status", "notification")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the one that the parser is for."""
    if parser.prog.endswith(" schema"):
        parser.add_argument("kind", choices=KINDS)
        return
    parser.add_argument("shell", choices=tuple(COMPLETIONS))
    parser.epilog = (
        'In ~/.bashrc: eval "$(batchd completion bash)". '
        "For zsh: batchd completion zsh > DIR/_batchd, where DIR is in fpath."
    )


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.command == "schema":
        print(text(args.kind), end="")
    else:
        import importlib.resources  # a schema does without

        folder = importlib.resources.files("batchd") / "data" / "completions"
        print((folder / COMPLETIONS[args.shell]).read_text("utf-8"), end="")
    return 0


def text(kind: str) -> str:
    """Return the JSON Schema of a kind of files."""
    if kind == "task":
        from batchd.spool import taskspec  # pydantic, only where it is needed

        schema = taskspec.schema()
    elif kind == "notification":
        from batchd.notify import format as notification  # msgspec, only where it is needed

        schema = notification.schema()
    else:
        from batchd import formats  # msgspec, only where it is needed

        schema = formats.schema(kind)
    return json.dumps(_flowing(schema), indent=2, ensure_ascii=False) + "\n"


def _flowing(schema: Any) -> Any:
    """Return a schema whose descriptions are a line each: in the code they are docstrings."""
    if isinstance(schema, dict):
        return {
            key: " ".join(value.split())
            if key == "description" and isinstance(value, str)
            else _flowing(value)
            for key, value in schema.items()
        }
    return [*map(_flowing, schema)] if isinstance(schema, list) else schema
