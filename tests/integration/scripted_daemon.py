"""A daemon whose agents are scripted:
``python -m scripted_daemon CONFIG MODULE:FUNCTION [FOLDER]``.

``FOLDER``: once there is a file ``go`` beside it, a thread of the daemon's makes a folder in it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

from batchd import config
from batchd.daemon import Daemon


def _make_folder(parent: Path) -> None:
    while not (parent.parent / "go").exists():
        time.sleep(0.01)
    (parent.parent / "went").touch()
    (parent / "daemon").mkdir()


if __name__ == "__main__":
    for folder in sys.argv[3:]:
        threading.Thread(target=_make_folder, args=[Path(folder)], daemon=True).start()
    asyncio.run(Daemon(config.load(Path(sys.argv[1]), {}), agent=sys.argv[2]).run())
