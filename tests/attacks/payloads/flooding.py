"""Opens connections to the proxy that say nothing, until a file called ``enough`` is there;
then asks a server for a page.

Arguments: the proxy's port, and the server's.
"""

import os
import socket
import sys
import time

proxy, server = map(int, sys.argv[1:])
idle = []
for _ in range(150):
    line = socket.socket()
    line.setblocking(False)
    try:
        line.connect(("127.0.0.1", proxy))
    except BlockingIOError:
        pass
    idle.append(line)
with open("up", "w"):
    pass
while not os.path.exists("enough"):
    time.sleep(0.02)
for line in idle:
    line.close()
with socket.create_connection(("127.0.0.1", proxy), 60) as line:
    line.sendall(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % server)
    print(line.recv(1000).decode().splitlines()[0])
