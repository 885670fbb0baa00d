"""On the client: one UDP datagram a millisecond to an echo server, until stdin ends. Prints JSON, times in seconds.

`longest`: from the sending of a datagram until it is back. One that is not back a second after the end is lost.

argv: address, port, seconds at most.
"""

import json
import select
import socket
import struct
import sys
import time

STEP = 0.001
PATIENCE = 1.0
STAMP = struct.Struct("!Id")


def main() -> None:
    address, port, seconds = sys.argv[1:]
    pulse = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    pulse.connect((address, int(port)))
    clock = time.monotonic
    # As an RTP packet begins (RFC 3550 section 5.1): nobody else's protocol.
    head, tail = b"\x80\x60", bytes(150)
    waiting: set[int] = set()
    sent, longest = 0, 0.0
    end = clock() + float(seconds)
    due = clock()
    print("ready", flush=True)
    ending = False
    while not ending or (waiting and clock() < end + PATIENCE):
        now = clock()
        if not ending and now >= due:
            pulse.send(head + STAMP.pack(sent, now) + tail)
            waiting.add(sent)
            sent += 1
            due = max(due + STEP, now)
        watched = [pulse] if ending else [pulse, sys.stdin]
        ready, _, _ = select.select(watched, [], [], max(0.0, (end + PATIENCE if ending else due) - clock()))
        if not ending and (sys.stdin in ready or now >= end):
            ending, end = True, clock()
        if pulse in ready:
            now = clock()
            number, began = STAMP.unpack_from(pulse.recv(2048), len(head))
            waiting.discard(number)
            longest = max(longest, now - began)
    print(json.dumps({"sent": sent, "lost": len(waiting), "longest": longest}))


main()
