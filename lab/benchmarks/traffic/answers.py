"""On a server: a TCP server that answers the first bytes of each connection and closes it, until stdin ends.

argv: how many bytes to answer, then ports.
"""

import select
import socket
import sys

# The kernel gives a connection only once it has something to read (tcp(7), TCP_DEFER_ACCEPT): nothing to wait for here.
PATIENCE = 5


def main() -> None:
    answer = bytes(int(sys.argv[1]))
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    for port in sys.argv[2:]:
        listener = socket.create_server(("0.0.0.0", int(port)), backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, PATIENCE)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poll.register(listener.fileno(), select.EPOLLIN)
    stdin = sys.stdin.fileno()
    poll.register(stdin, select.EPOLLIN | select.EPOLLHUP)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd == stdin:
                return
            answer_all(listeners[fd], answer)


def answer_all(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            continue
        connection.setblocking(False)
        try:
            if connection.recv(4096):
                connection.send(answer)
        except OSError:
            pass  # a reset, which the client counts, or a client that waited for too long
        connection.close()


main()
