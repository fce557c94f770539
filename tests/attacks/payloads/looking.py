"""Prints what /proc says about every process: environments, command lines, maps, names, mounts."""

import glob

for path in glob.glob("/proc/[0-9]*/*") + glob.glob("/proc/[0-9]*/task/*/environ"):
    if path.rpartition("/")[2] in ("environ", "cmdline", "maps", "comm", "mountinfo"):
        try:
            with open(path, "rb") as file:
                print(path, file.read())
        except OSError as error:
            print(path, error.errno)
