"""A worker that never comes up:
it loads this, or the fork server does, until its parent has gone.
"""

import os
import time

_PARENT = os.getppid()
while os.getppid() == _PARENT:
    time.sleep(0.01)
os._exit(1)
