"""What appears in the outbox: always whole, durable before anybody is told."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from batchd.records import Batch
from batchd.spool import files

#: The file that is written last of all.
SUMMARY = "summary.json"

_NAME_BYTES = 100


def publish(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a file that appears whole, its folder made where it is missing.

    Raises ``FileExistsError`` where it is there and must not be replaced, ``OSError`` where it
    cannot be written.
    """
    files.make_folder(path.parent)
    if path.name == SUMMARY:
        # After it nothing is written, and a collector may take the folder away.
        files.sweep(path.parent)
    files.write_whole(path, lambda file: file.write(data), replace=replace)


def publish_request(claimed: Path, batch: Batch) -> Path:
    """Move a claimed file into its batch's folder; return where it lies. Can be repeated.

    Raises ``FileNotFoundError`` where it lies neither here nor there.
    """
    target = Path(batch.folder, batch.request)
    files.make_folder(target.parent)
    files.move(claimed, target)
    return target


def batch_name(filename: str) -> str:
    """Return the name that a batch gets from its file: letters, digits, _ and -, at most 100 bytes."""
    stem = unicodedata.normalize("NFC", Path(filename).stem)
    # Marks belong to the letters of many scripts; \w leaves them out.
    kept = "".join(c if c in "_-" or unicodedata.category(c)[0] in "LNM" else " " for c in stem)
    name = re.sub(r" +", "-", kept.strip(" -"))
    return name.encode()[:_NAME_BYTES].decode("utf-8", "ignore").rstrip("-") or "batch"


def request_name(filename: str) -> str:
    """Return the name of the dropped file in its batch's folder: ``request`` and its own ending."""
    ending = Path(filename).suffix
    return f"request{ending}" if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", ending) else "request"
