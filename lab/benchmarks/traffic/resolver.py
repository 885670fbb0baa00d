"""On a server: answers every DNS query with NXDOMAIN (RFC 1035 section 4.1.1), until stdin ends.

argv: address, port.
"""

import os
import select
import socket
import sys
import threading


def main() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    server.bind((sys.argv[1], int(sys.argv[2])))
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print("ready", flush=True)
    query = bytearray(2048)
    view = memoryview(query)
    receive, send = server.recvfrom_into, server.sendto
    while True:
        length, client = receive(query)
        query[2] |= 0x80  # QR
        query[3] = 0x83  # RA, NXDOMAIN
        send(view[:length], client)


def end_with_stdin() -> None:
    select.select([sys.stdin], [], [])
    os._exit(0)


main()
