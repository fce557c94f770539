"""``batchd schema``: the formats, for editors and other programs."""

from __future__ import annotations

import argparse
import json
from typing import Any

KINDS = ("task", "result", "summary", "status", "notification")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("kind", choices=KINDS)


def run(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    print(text(args.kind), end="")
    return 0


def text(kind: str) -> str:
    """Return the JSON Schema of a kind of files."""
    if kind == "task":
        from batchd.spool import taskschema  # pydantic, only where it is needed

        schema = taskschema.schema()
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
