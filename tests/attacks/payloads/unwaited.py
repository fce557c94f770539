"""Computes in children that are short and that are never waited for."""

import os
import signal
import time

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if not os.fork():
        end = time.time() + 0.7
        while time.time() < end:
            pass
        os._exit(0)
    time.sleep(0.5)
