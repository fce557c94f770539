"""Makes the terminal of its descriptor 2 its own, and becomes the program of its arguments."""

import fcntl
import os
import sys
import termios

os.setsid()
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
