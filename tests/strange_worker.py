"""A worker that is none of ours, as a machine's command starts it: `strange_worker.py WHAT`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from batchd import wire
from batchd.pool import code, shared_folders
from batchd.pool.elsewhere import MAGIC
from batchd.records import SandboxPolicy
from batchd.version import __version__


def say(message: Any) -> None:
    """Send a message, or bytes as they are."""
    data = message if isinstance(message, bytes) else wire.pack(message)
    while data:
        data = data[os.write(1, data) :]


def heard() -> Any:
    """Return the daemon's next message."""
    size = int.from_bytes(_read(4), "big")
    return wire.unpack(_read(size))


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := os.read(0, size - len(data))):
            sys.exit(0)
        data += more
    if sys.argv[1] == "keeps all":
        with open(sys.argv[2], "ab") as file:
            file.write(data)
    return data


def main(what: str) -> None:
    """Come up as a worker does, take a task, and do ``what``."""
    say(MAGIC)
    hello: wire.Hello = heard()
    policy = hello.settings.sandbox if hello.settings else SandboxPolicy()
    for proof in hello.proofs:
        shared_folders.answer(proof, policy)
    files = "0" * 64 if what == "other files" else code.content()
    off_s = 90.0 if what == "another clock" else 0.0
    facts = wire.MachineFacts(
        host="strange", python=code.python(), at=time.time() + off_s, keys={"standin": ""}
    )
    say(wire.Hello(version=__version__, code=files, pid=os.getpid(), machine=facts))
    say(wire.Heartbeat(rss=1, number=1, at=time.time()))
    while not isinstance(run := heard(), wire.Run):
        pass
    match what:
        case "another's task":
            event = ()
            other = wire.Record(ref=run.ref, attempt=run.attempt + 1, seq=0, events=event)
            say(other)
            while not isinstance(answer := heard(), wire.Nack):
                pass
            with open(sys.argv[2], "w") as file:
                json.dump([answer.ref.batch, answer.attempt], file)
        case "no event":
            say(wire.Record(ref=run.ref, attempt=run.attempt, seq=0, events=(b'["Nonsense",{}]',)))  # type: ignore[arg-type]
        case "a huge frame":
            say((100 << 20).to_bytes(4, "big") + b"x" * 4096)
        case "no frame":
            say(b"\0\0\0\2{]")
        case "reads nothing":
            ref = type(run.ref)("b" * 4000, "x")
            piece = wire.pack(wire.Record(ref=ref, attempt=1, seq=0, events=()))
            sent = 0
            while True:
                say(piece)
                sent += len(piece)
                with open(sys.argv[2], "w") as file:
                    file.write(str(sent))
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
