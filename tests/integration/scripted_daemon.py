"""A daemon whose agents are scripted: ``python scripted_daemon.py CONFIG MODULE:FUNCTION``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from batchd import config
from batchd.daemon import Daemon

if __name__ == "__main__":
    asyncio.run(Daemon(config.load(Path(sys.argv[1]), {}), agent=sys.argv[2]).run())
