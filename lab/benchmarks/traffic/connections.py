"""On the client: as many connections as possible, each with a ClientHello and an answer. Prints JSON.

argv: address, file of ClientHellos, seconds, connections at once, ports.
"""

import json
import select
import socket
import sys
import time
from itertools import cycle
from pathlib import Path


def main() -> None:
    address, hello_file, seconds, at_once, *ports = sys.argv[1:]
    hellos = cycle([bytes.fromhex(line) for line in Path(hello_file).read_text().split()])
    targets = cycle([(address, int(port)) for port in ports])
    poll = select.epoll()
    opened: dict[int, socket.socket] = {}
    answered = failed = 0

    def begin() -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.connect_ex(next(targets))
        opened[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)

    for _ in range(int(at_once)):
        begin()
    began = time.perf_counter()
    end = began + float(seconds)
    while time.perf_counter() < end:
        for fd, events in poll.poll(0.1):
            connection = opened[fd]
            try:
                # Told of changes only: first that it is connected, then that there is something to read.
                if not events & select.EPOLLIN:
                    connection.send(next(hellos))
                    continue
                good = bool(connection.recv(4096))
            except OSError:
                good = False
            answered += good
            failed += not good
            del opened[fd]
            connection.close()
            begin()
    spent = time.perf_counter() - began
    print(json.dumps({"answered": answered, "failed": failed, "seconds": spent}))


main()
