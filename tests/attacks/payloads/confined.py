"""Prints what a command can see of its confinement."""

import json
import os

# First of all, for what is opened below is no descriptor that it was given.
descriptors = sorted(n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}"))
with open("/proc/net/dev") as links, open("/proc/self/status") as status:
    seen = {
        "fds": descriptors,
        "links": [line.split(":")[0].strip() for line in links.readlines()[2:]],
        "status": {line.split(":")[0]: line.split(":")[-1].split() for line in status},
        "net": os.stat("/proc/self/ns/net").st_ino,
        "pids": len([n for n in os.listdir("/proc") if n.isdigit()]),
        "resolv": os.path.exists("/etc/resolv.conf"),
    }
print(json.dumps(seen))
