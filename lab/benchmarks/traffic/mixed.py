"""On the client: a steady mixture of short connections, DNS queries and UDP datagrams, until stdin ends. Prints JSON.

Every second connection sends a forbidden ClientHello and must end with a reset, the others with an answer. Each DNS
query comes from a port of its own, and datagrams change theirs now and then: flows come and go.

What cannot be sent in time is left out, so that a slow censor does not get more later; and while an answer is long in
coming nothing is sent, so that no queue overflows on a machine that has other things to do. After the warm-up no more
is sent than was then on average: what memory grows by from there is not due to more flows.

argv: address, file of allowed ClientHellos, file of forbidden ones, file of names, connections a second, queries a
second, datagrams a second, seconds of warm-up, seconds at most.
"""

import json
import math
import random
import select
import socket
import struct
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

TLS_PORT, DNS_PORT, UDP_PORT = 443, 53, 4000
TICK = 0.005
STALL = 0.25
PATIENCE = 20.0
BURST = 20
SENDERS = 50
BURSTS_A_SENDER = 10
DATAGRAM = b"\x80\x60" + bytes(200)


def main() -> None:
    address, allowed, forbidden, names, *numbers = sys.argv[1:]
    rates = [float(number) for number in numbers[:3]]
    hellos = [[bytes.fromhex(line) for line in Path(path).read_text().split()] for path in (allowed, forbidden)]
    mixture = Mixture(address, hellos, Path(names).read_text().split())
    kinds = (mixture.connect, mixture.ask, mixture.burst)
    steps = [rate * TICK / (BURST if kind == mixture.burst else 1) for rate, kind in zip(rates, kinds, strict=True)]
    print("ready", flush=True)
    due = began = time.monotonic()
    warm, end = (began + float(seconds) for seconds in numbers[3:])
    owed = [0.0, 0.0, 0.0]
    sent = pace_later = 0.0
    while (now := time.monotonic()) < end:
        if sys.stdin in select.select([sys.stdin], [], [], 0)[0]:
            break
        mixture.attend(max(0.0, due - now))
        if time.monotonic() < due:
            continue
        due = max(due + TICK, time.monotonic() - TICK)
        if mixture.waits_since() < time.monotonic() - STALL:
            continue
        if time.monotonic() < warm:
            pace = 1.0
            pace_later = (sent + 1) * TICK / (warm - began)
        else:
            pace = pace_later
        sent += pace
        for number, kind in enumerate(kinds):
            owed[number] += steps[number] * pace
            while owed[number] >= 1:
                owed[number] -= 1
                kind()
    mixture.outcomes["percent of the load"] = round(100 * sent * TICK / (time.monotonic() - began))
    deadline = time.monotonic() + PATIENCE
    while mixture.open and time.monotonic() < deadline:
        mixture.attend(0.05)
    mixture.outcomes["unanswered"] += len(mixture.open)
    print(json.dumps(mixture.outcomes))


class Mixture:
    def __init__(self, address: str, hellos: list[list[bytes]], names: list[str]) -> None:
        self.address = address
        self.turns = cycle([("allowed", cycle(hellos[0])), ("forbidden", cycle(hellos[1]))])
        self.names = names
        self.poll = select.epoll()
        self.open: dict[int, tuple[str, bytes, socket.socket, float]] = {}
        self.outcomes: Counter[str] = Counter()
        self.chooser = random.Random(20)
        self.bursts = 0
        self.senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SENDERS)]

    def connect(self) -> None:
        kind, hellos = next(self.turns)
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.connect_ex((self.address, TLS_PORT))
        self._watch(kind, next(hellos), connection, select.EPOLLOUT)

    def ask(self) -> None:
        name = self.chooser.choice(self.names)
        question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\x01\0\x01"
        query = struct.pack("!6H", self.chooser.getrandbits(16), 0x0100, 1, 0, 0, 0) + question
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        one.sendto(query, (self.address, DNS_PORT))
        self._watch("query", b"", one, select.EPOLLIN)

    def burst(self) -> None:
        number = self.bursts // BURSTS_A_SENDER % SENDERS
        if self.bursts % BURSTS_A_SENDER == 0:
            self.senders[number].close()
            self.senders[number] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.bursts += 1
        sender = self.senders[self.bursts % SENDERS]
        for _ in range(BURST):
            sender.sendto(DATAGRAM, (self.address, UDP_PORT))
        self.outcomes["datagrams"] += BURST

    def _watch(self, kind: str, hello: bytes, one: socket.socket, events: int) -> None:
        self.open[one.fileno()] = kind, hello, one, time.monotonic()
        self.poll.register(one.fileno(), events)

    def attend(self, patience: float) -> None:
        for fd, events in self.poll.poll(patience):
            kind, hello, one, _ = self.open[fd]
            try:
                if events & select.EPOLLOUT and kind != "query":
                    one.send(hello)
                    self.poll.modify(fd, select.EPOLLIN)
                    continue
                outcome = "answer" if one.recv(65536) else "end"
            except ConnectionResetError:
                outcome = "reset"
            except OSError as error:
                outcome = type(error).__name__
            self._done(fd, f"{kind} {outcome}")
        if self.waits_since() < time.monotonic() - PATIENCE:
            oldest = next(iter(self.open))
            self._done(oldest, f"{self.open[oldest][0]} timeout")

    def waits_since(self) -> float:
        """When the oldest of what is open began; without any, never."""
        return next(iter(self.open.values()))[3] if self.open else math.inf

    def _done(self, fd: int, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.open.pop(fd)[2].close()


main()
