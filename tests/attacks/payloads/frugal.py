"""Uses much of what the kernel keeps for programs, and little memory:
for the seconds of its first argument.
"""

import os
import select
import socket
import sys
import time

held = []
for number in range(300):
    near, far = socket.socketpair()
    near.send(b"x" * (100 if number % 5 else 20_000))
    near.close()
    held += [far, *os.pipe(), select.epoll()]
with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
    clients = [socket.create_connection(server.getsockname()) for _ in range(100)]
    held += [server.accept() for _ in clients]
listener = socket.socket(socket.AF_UNIX)
listener.bind("\0waiting")
listener.listen(200)
for _ in range(5):
    client = socket.socket(socket.AF_UNIX)
    client.connect("\0waiting")
    client.send(b"a request")
    held.append(client)
with open("/dev/shm/file", "wb") as file:
    file.write(bytes(30 << 20))
for _ in range(20):
    if os.fork() == 0:
        time.sleep(float(sys.argv[1]))
        os._exit(0)
time.sleep(float(sys.argv[1]))
