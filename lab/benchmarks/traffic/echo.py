"""On a server: sends every UDP datagram back, until stdin ends. argv: address, port."""

import os
import select
import socket
import sys
import threading


def main() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((sys.argv[1], int(sys.argv[2])))
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print("ready", flush=True)
    buffer = bytearray(2048)
    view = memoryview(buffer)
    while True:
        length, client = server.recvfrom_into(buffer)
        server.sendto(view[:length], client)


def end_with_stdin() -> None:
    select.select([sys.stdin], [], [])
    os._exit(0)


main()
