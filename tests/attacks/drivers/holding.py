"""Holds a key in its environment and in its memory, as a daemon does;
with the argument ``sealed`` it is sealed.
"""

import os
import sys
import time

from batchd import processes

held = os.environ["MY_API_KEY"] + "-in-memory"
if sys.argv[1] == "sealed":
    processes.seal()
    processes.forget([])
    assert "MY_API_KEY" not in os.environ
print("ready", flush=True)
time.sleep(1000)
