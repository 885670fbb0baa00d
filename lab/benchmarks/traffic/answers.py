"""On a server: a TCP server that answers the first bytes of each connection and closes it, until stdin ends.

argv: how many bytes to answer, then ports.
"""

import select
import socket
import sys


def main() -> None:
    answer = bytes(int(sys.argv[1]))
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    waiting: dict[int, socket.socket] = {}
    for port in sys.argv[2:]:
        listener = socket.create_server(("0.0.0.0", int(port)), backlog=4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poll.register(listener.fileno(), select.EPOLLIN)
    stdin = sys.stdin.fileno()
    poll.register(stdin, select.EPOLLIN | select.EPOLLHUP)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd in listeners:
                accept_all(listeners[fd], poll, waiting)
            elif fd == stdin:
                return
            else:
                connection = waiting.pop(fd)
                try:
                    if connection.recv(4096):
                        connection.send(answer)
                except OSError:
                    pass  # a reset; the client counts those
                connection.close()


def accept_all(listener: socket.socket, poll: select.epoll, waiting: dict[int, socket.socket]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            continue
        connection.setblocking(False)
        waiting[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLIN)


main()
