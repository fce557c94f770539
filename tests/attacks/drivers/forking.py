"""Starts the fork server of a pool, with a key in its environment,
and prints its number once it has loaded all.
"""

import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from batchd.pool import fork_server

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fork_server.prepare(Path(folder))
        first = fork_server.FORKSERVER.Process(target=time.sleep, args=(0,))
        first.start()
        first.join()
        print(forkserver._forkserver._forkserver_pid, flush=True)  # type: ignore[attr-defined]
        sys.stdin.read()
