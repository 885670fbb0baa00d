"""On the client: UDP datagrams as fast as possible from several ports. Prints JSON: how many went out.

One system call sends a batch that the kernel cuts into datagrams (UDP_SEGMENT, udp(7)): else Python would be the limit.

argv: address, port, bytes in a datagram, flows, seconds.
"""

import json
import socket
import sys
import time
from itertools import cycle

UDP_SEGMENT = 103  # <linux/udp.h>; not in Python's socket module
BATCH = 32


def main() -> None:
    address, port, size, flows, seconds = sys.argv[1:]
    sockets = []
    for _ in range(int(flows)):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, int(size))
        sender.connect((address, int(port)))
        sockets.append(sender)
    # As an RTP packet begins (RFC 3550 section 5.1): version 2, and a payload type that is nobody else's.
    batch = (b"\x80\x60" + bytes(range(256)) * 6)[: int(size)] * BATCH
    sent = 0
    began = time.perf_counter()
    end = began + float(seconds)
    for sender in cycle(sockets):
        if time.perf_counter() >= end:
            break
        try:
            sender.send(batch)
        except OSError:
            continue
        sent += BATCH
    print(json.dumps({"sent": sent, "seconds": time.perf_counter() - began}))


main()
