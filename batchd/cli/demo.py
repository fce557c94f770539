"""``batchd demo``: the whole way with a stand-in model, as separate processes on a fresh spool."""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from batchd import installation
from batchd.cli import submit
from batchd.cli.display import formatting, progress, summary_text
from batchd.demo import replay
from batchd.errors import NotPossibleError
from batchd.spool import inbox
from batchd.store.queries import StoreReader

#: How long the daemon may take to be ready, and to end.
_PATIENCE_S = 30.0
#: How long it may not answer while it works: nobody starts another one here.
_GONE_S = 5.0
#: Runs a module of ours, and none that lies in the working directory.
_PYTHON = (sys.executable, "-P", "-m")

_CONFIG = """\
# Made by `batchd demo`. The stand-in model replays recorded conversations; its prices are invented.
[agent]
model = "standin/demo"

[providers.standin]
base_url = "{base_url}"
tools = "text"  # as in the recorded conversations

[models."standin/demo"]
input_usd_per_mtok = 0.28
cached_input_usd_per_mtok = 0.028
output_usd_per_mtok = 0.42
context_window = 128000

[log]
format = "json"
"""

_CLOSING = """\
Where things lie, in {spool}:
  outbox/task/report.html     all of it to look at, in a browser
  outbox/task/001.json, …     the results; results.jsonl, summary.json
  outbox/task/001/, …         the files that the tasks made
  outbox/task/001.jsonl, …    the transcripts
  daemon.log                  the daemon's log
  server.jsonl                the requests, as the model's server saw them

The model was a stand-in: a server on this machine that replays what a real one
once answered. All else was real: daemon, sandbox, commands, files. Its prices
are invented. With a real model:

{activate}  batchd init ~/spool         makes a spool, and says what comes next
  cd ~/spool
  export OPENAI_API_KEY=…     or another provider's
  batchd check                what would fail, and the fix
  batchd run sample.json      here and now; or `batchd serve`, and drop it there

Providers and keys: {page}
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--speed", type=float, default=80.0, metavar="N", help="tokens a second of the model (80)"
    )


def run(args: argparse.Namespace) -> int:
    """Start all of it, drop the sample file, watch, and say where everything lies."""
    return play(Path(tempfile.mkdtemp(prefix="batchd-demo-")), args.speed)


def play(spool: Path, speed: float, config: str = "") -> int:
    """Do so in this spool, with so many tokens a second and more of config.toml."""
    print(f"A fresh spool: {spool}")
    with contextlib.ExitStack() as stack:
        base_url = stack.enter_context(replay.serving(speed, spool / "server.jsonl"))
        print(f"A stand-in model: {base_url}")
        (spool / "config.toml").write_text(_CONFIG.format(base_url=base_url) + config, "utf-8")
        pid = stack.enter_context(_daemon(spool))
        print(f"A daemon: process {pid}")
        sample = importlib.resources.files("batchd.demo") / "task.json"
        print(f"Dropping task.json into {spool / 'inbox'}\n")
        inbox.drop(spool / "inbox", "task.json", sample.read_bytes())
        with StoreReader(formatting.store_path(spool / ".batchd")) as reader:
            watch = progress.ProgressWatch(reader, lambda r: r.batches())
            progress.follow(
                watch, partial(submit.takes, spool / ".batchd"), quiet=False, patience_s=_GONE_S
            )
            rows = reader.batches()
    code = summary_text.report(rows)
    # Where things lie, and how to go on, from where batchd is installed.
    closing = _CLOSING.format(
        spool=spool,
        activate="  . .venv/bin/activate\n" if installation.checkout() else "",
        page=installation.page("docs/configuration.md"),
    )
    print(f"\n{closing}", end="")
    return code


@contextlib.contextmanager
def _daemon(spool: Path) -> Iterator[int]:
    command = [*_PYTHON, "batchd", "--config", str(spool / "config.toml"), "serve"]
    # What the user has set for a daemon of their own is not meant for this one.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BATCHD_")}
    log = spool / "daemon.log"
    with (
        log.open("wb") as stderr,
        # Ctrl-C reaches it through us alone.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=stderr, env=environ, process_group=0
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while not submit.takes(spool / ".batchd"):
                if process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
                    raise NotPossibleError(said.removeprefix("batchd: ") or f"see {log}")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
