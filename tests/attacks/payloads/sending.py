"""Sends each payload of a file to the proxy on a connection of its own,
all at once, and prints the answers.

Arguments: the proxy's port,
and for how many seconds it may be silent before the connection is left.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def sent(payload: str) -> str:
    """Return what a payload is answered."""
    heard = b""
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as line:
            line.settimeout(float(sys.argv[2]))
            line.sendall(payload.encode("latin-1"))
            while data := line.recv(65536):
                heard += data
    except OSError as error:
        heard += b" " + type(error).__name__.encode()
    return heard.decode("latin-1")


with open("payloads") as file, ThreadPoolExecutor(32) as pool:
    print(json.dumps(list(pool.map(sent, json.load(file)))))
