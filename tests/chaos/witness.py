"""Sees what reaches the outboxes and the model servers, while it happens; asks batchd nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from books import Json, Outcome
from progress import INBOX

#: What is published once, and never changes.
_ONCE = (".json", ".jsonl")


@dataclass
class Folder:
    """What is known of a batch's folder."""

    path: Path
    #: When it was first seen.
    seen: float
    #: Of the request, once it is there.
    request: bytes | None = None
    summary: Json | None = None
    #: By name: the file as the kernel knows it, and the hash of its bytes.
    files: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    #: By prompt.
    results: dict[str, Json] = field(default_factory=dict)


class ServerLog:
    """The log of a model server that grows."""

    def __init__(self, path: Path, provider: str) -> None:
        self._path = path
        self._provider = provider
        self._offset = 0

    def new(self) -> Iterator[Json]:
        """Yield the exchanges that have ended since the last look, each with its lane."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                exchange = json.loads(line)
                yield {**exchange, "lane": f"{self._provider}/{exchange['model']}"}


class Witness:
    """Remembers all that was published and asked."""

    def __init__(self, outboxes: Callable[[], Sequence[Path]], logs: Sequence[ServerLog]) -> None:
        self._outboxes = outboxes
        self._logs = logs
        self.folders: dict[Path, Folder] = {}
        self.complaints: list[str] = []
        #: Exchanges by prompt.
        self.asked: dict[str, list[Json]] = defaultdict(list)

    def look(self, now: float) -> set[str]:
        """See what is new; return the lanes that have moved."""
        moved = set()
        for log in self._logs:
            for exchange in log.new():
                self.asked[exchange["prompt"]].append(exchange)
                if exchange["delivered"] and exchange["status"] == 200:
                    moved.add(exchange["lane"])
        for outbox in self._outboxes():
            # A disk that fails for a while shows nothing, and hides nothing for good.
            with contextlib.suppress(OSError):
                for entry in sorted(os.scandir(outbox), key=lambda e: e.name):
                    if entry.is_dir() and not entry.name.startswith("."):
                        moved |= self._folder(Path(entry.path), now)
        return moved

    def _folder(self, path: Path, now: float) -> set[str]:
        moved = set()
        folder = self.folders.get(path)
        if folder is None:
            folder = self.folders[path] = Folder(path, now)
            moved.add(INBOX)
        if folder.summary is not None:
            return moved
        for file in sorted(os.scandir(path), key=lambda e: e.name):
            if file.is_file(follow_symlinks=False) and not file.name.startswith("."):
                moved |= self._file(folder, file)
        return moved

    def _file(self, folder: Folder, file: os.DirEntry[str]) -> set[str]:
        """Look at one file of a folder, where it is one that is published at once."""
        name = file.name
        if name.startswith("request."):
            if folder.request is None:
                folder.request = Path(file.path).read_bytes()
            return set()
        if not name.endswith(_ONCE) or name == "results.jsonl" or not self._new(folder, file):
            return set()
        if name.endswith(".jsonl"):
            return set()
        text = Path(file.path).read_bytes()
        try:
            value = json.loads(text)
        except ValueError:
            self.complaints.append(f"{file.path} is not whole: {text[-200:]!r}")
            return set()
        if name == "summary.json":
            folder.summary = value
            return {INBOX} if value["status"] == "rejected" else set()
        folder.results[value["first_prompt"]] = value
        return {value["model"]}

    def _new(self, folder: Folder, file: os.DirEntry[str]) -> bool:
        """Whether a file is seen for the first time; complain of one whose bytes have changed."""
        stat = file.stat()
        mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = folder.files.get(file.name)
        if known and known[0] == mark:
            return False
        digest = hashlib.blake2b(Path(file.path).read_bytes()).hexdigest()
        if known and known[1] != digest:
            self.complaints.append(f"{file.path} was published, and has other bytes now")
        folder.files[file.name] = mark, digest
        return known is None

    def changed(self) -> list[str]:
        """Read all that was ever published once more; return what is not as it was."""
        complaints = []
        for folder in self.folders.values():
            for name, (_, digest) in folder.files.items():
                path = folder.path / name
                if not path.exists():
                    complaints.append(f"{path} was published, and is gone")
                elif hashlib.blake2b(path.read_bytes()).hexdigest() != digest:
                    complaints.append(f"{path} was published, and has other bytes now")
        return complaints

    def outcomes(self, folder: Folder) -> list[Outcome]:
        """Return the results of a folder with their transcripts."""
        return [Outcome(r, _events(folder.path, r)) for r in folder.results.values()]


def _events(folder: Path, result: Mapping[str, Any]) -> list[Json]:
    if result["transcript"] is None:
        return []
    return [json.loads(line) for line in (folder / result["transcript"]).read_text().splitlines()]
