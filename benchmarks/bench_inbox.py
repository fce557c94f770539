"""100,000 files dropped into the inbox of a running daemon:
each is claimed, stored and moved exactly once.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from harness import Daemon, row, stage

FILES = int(os.environ.get("BATCHD_BENCH_FILES", "100000"))
#: For the floor: what is synced together, as the inbox does.
_CHUNK = 256


def data(number: int) -> bytes:
    """Return a small task file, each of its own."""
    return json.dumps({"tasks": [{"first_prompt": f"write game number {number}"}]}).encode()


def floor(count: int) -> float:
    """Return the milliseconds a file of a plain loop:
    read, make its folder, move it there, sync now and then.
    """
    with tempfile.TemporaryDirectory(prefix="batchd-bench-") as name:
        inbox, outbox = Path(name, "inbox"), Path(name, "outbox")
        inbox.mkdir()
        outbox.mkdir()
        for i in range(count):
            (inbox / f"{i}.json").write_bytes(data(i))
        begun = time.perf_counter()
        for i in range(count):
            path = inbox / f"{i}.json"
            path.read_bytes()
            (outbox / str(i)).mkdir()
            path.rename(outbox / str(i) / "request.json")
            if i % _CHUNK == 0:
                folder = os.open(outbox, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
        return (time.perf_counter() - begun) * 1000 / count


def drop(spool: Path) -> int:
    """Move the files in one by one, each whole, as fast as it goes,
    in a process of its own; return its number.
    """
    if pid := os.fork():
        return pid
    for i in range(FILES):
        new = spool / "new"
        new.write_bytes(data(i))
        new.rename(spool / "inbox" / f"game{i}.json")
    os._exit(0)


def empty(folder: Path) -> bool:
    """Return whether nothing lies in a folder, hidden things apart."""
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(".") for entry in entries)


def exactly_once(daemon: Daemon) -> bool:
    """Return whether store and outbox have each file once, and nothing else."""
    spool = daemon.spool
    db = sqlite3.connect(f"file:{spool}/.batchd/batchd.db?mode=ro", uri=True)
    stored = {name for (name,) in db.execute("SELECT name FROM batches")}
    db.close()
    wanted = {f"game{i}" for i in range(FILES)}
    whole = all((spool / f"outbox/{name}/request.json").exists() for name in wanted)
    left = [*(spool / "inbox").iterdir(), *(spool / ".batchd/claimed").iterdir()]
    return (
        stored == wanted
        and {p.name for p in (spool / "outbox").iterdir()} == {*wanted, "status.json"}
        and whole
        and not left
    )


def main() -> int:
    """Measure and print."""
    plain = floor(min(FILES, 10_000))
    with stage("hang", processes=1) as (_, daemon):
        cpu, begun = daemon.cpu_s(), time.perf_counter()
        dropper, inbox = drop(daemon.spool), daemon.spool / "inbox"
        claimed = daemon.spool / ".batchd/claimed"
        os.waitpid(dropper, 0)
        while not (empty(inbox) and empty(claimed)):
            time.sleep(0.05)
        took = (time.perf_counter() - begun) * 1000 / FILES
        used = (daemon.cpu_s() - cpu) * 1000 / FILES
        once, peak = exactly_once(daemon), daemon.peak_mb()
        daemon.process.kill()
    row(f"{FILES:,} files dropped, each taken up exactly once", str(once), "", held=once)
    row("  a file", f"{took:.2f} ms", "≤ 2 ms", held=took <= 2)
    row("  the daemon's CPU for it", f"{used:.2f} ms", "", held=True)
    row("  a plain loop that moves files", f"{plain:.2f} ms", "", held=True)
    row("  the daemon's memory at most", f"{peak:.0f} MB RSS", "≤ 300 MB", held=peak <= 300)
    return 0 if once and took <= 2 and peak <= 300 else 1


if __name__ == "__main__":
    sys.exit(main())
