"""Takes as many megabytes as its first argument says, touches them,
and sits on them for the seconds of its second.
"""

import sys
import time

taken = bytearray(int(sys.argv[1]) << 20)
print("has it", flush=True)
time.sleep(float(sys.argv[2]))
