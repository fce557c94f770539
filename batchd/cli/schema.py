"""``batchd schema``: the formats, for editors and other programs."""

from __future__ import annotations

import argparse
import json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("kind", choices=("task", "result", "summary", "notification"))


def run(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    if args.kind == "task":
        from batchd.spool import taskfile  # noqa: PLC0415 (pydantic, only where it is needed)

        schema = taskfile.schema()
    elif args.kind == "notification":
        from batchd.notify import format as notification  # noqa: PLC0415 (msgspec, only where it is needed)

        schema = notification.schema()
    else:
        from batchd import formats  # noqa: PLC0415 (msgspec, only where it is needed)

        schema = formats.schema(args.kind)
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0
