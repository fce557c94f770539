"""What editors, shells and other programs need of batchd: ``batchd schema`` prints the formats,
``batchd completion`` what completes commands, options and names, where a shell has not found it by
itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: The file of each shell, in ``data/completions``; ``make generated`` makes them.
COMPLETIONS = {"bash": "batchd.bash", "zsh": "_batchd", "fish": "batchd.fish"}
#: What completions ask for as somebody types.
NAMES = "names"
#: The modules that have a schema of their own; of the others ``formats`` has it.
_SCHEMAS = {
    "task": "spool.taskspec",
    "status-json": "cli.status",
    "event": "results",
    "api": "web.page_data",
    "notification": "notify.format",
}
KINDS = ("task", "result", "summary", "status", "status-json", "event", "api", "notification")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the one that the parser is for."""
    if parser.prog.endswith(" schema"):
        parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
        return
    parser.add_argument("shell", choices=(*COMPLETIONS, NAMES), metavar="bash|zsh|fish")
    parser.add_argument("begun", nargs="?", default="", help=argparse.SUPPRESS)
    parser.epilog = (
        'In ~/.bashrc: eval "$(batchd completion bash)". '
        "For zsh: batchd completion zsh > DIR/_batchd, where DIR is in fpath. For fish: batchd "
        "completion fish > ~/.config/fish/completions/batchd.fish."
    )


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.command == "schema":
        print(text(args.kind), end="")
    elif args.shell == NAMES:
        for name in _names(args.config, args.begun):
            print(name)
    else:
        folder = importlib.resources.files("batchd") / "data" / "completions"
        print((folder / COMPLETIONS[args.shell]).read_text("utf-8"), end="")
    return 0


def _names(file: Path | None, begun: str) -> Iterable[str]:
    """Return the names that somebody may be typing; none where anything is wrong."""
    from batchd import config, silent_paths  # the others do without
    from batchd.cli.display import formatting
    from batchd.errors import BatchdError
    from batchd.store import queries
    from batchd.store.queries import StoreReader

    with contextlib.suppress(BatchdError, OSError):
        state = config.load_paths(file).state
        silent_paths.refuse(state)
        with StoreReader(formatting.store_path(Path(state))) as reader:
            return reader.read(queries.names, begun)
    return ()


def text(kind: str) -> str:
    """Return the JSON Schema of a kind of files."""
    # Each loads what it needs, such as pydantic, only where it is asked for.
    if module := _SCHEMAS.get(kind):
        schema = importlib.import_module(f"batchd.{module}").schema()
    else:
        schema = importlib.import_module("batchd.formats").schema(kind)
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
