"""Makes folders 3,200 levels deep in /tmp, the last one closed."""

import os

os.chdir("/tmp")
for _ in range(3200):
    os.mkdir("d")
    os.chdir("d")
with open("x", "w"):
    pass
os.chmod(".", 0)
