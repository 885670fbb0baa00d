"""A program: the engine alone with many flows. Prints JSON, memory in MB (10^6 bytes).

argv: rule file, how many flows.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.workload import allowed_name, client_hello
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived
from gfwemu.model import FiveTuple, Side, Transport
from gfwemu.rules.load import load_rules
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import TcpFlags

_SERVER = bytes([203, 0, 113, 1])
_FIRST_PORT = 1024
_PORTS = 60_000
_START = 1_700_000_000.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SYN, _ACK, _PSH = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH


def main() -> None:
    rules, count = Path(sys.argv[1]), int(sys.argv[2])
    engine = Engine(load_rules([rules]))
    gc.collect()
    idle = resident()
    for number, (data, side) in enumerate(packets(count)):
        engine.handle(PacketArrived(number, data, _START + number * 1e-4, side))
    gc.collect()
    print(json.dumps({"flows": engine.flow_count, "idle": idle, "added": resident() - idle}))


def packets(flows: int) -> Iterator[tuple[bytes, Side]]:
    """SYN, answer and half a ClientHello of each flow. Bare ACKs are nothing that the kernel queues."""
    forth = FiveTuple(Transport.TCP, bytes(4), 0, _SERVER, 443)
    hello = client_hello(allowed_name(0))
    half = hello[: len(hello) // 2]
    templates = (
        (bytearray(build_tcp(forth, seq=1000, ack=0, flags=_SYN)), 12, 20, Side.INSIDE),
        (bytearray(build_tcp(forth.reversed(), seq=5000, ack=1001, flags=_SYN | _ACK)), 16, 22, Side.OUTSIDE),
        (bytearray(build_tcp(forth, seq=1001, ack=5001, flags=_ACK | _PSH, payload=half)), 12, 20, Side.INSIDE),
    )
    for number in range(flows):
        address = bytes([192, 0, 2, 1 + number // _PORTS])
        port = (_FIRST_PORT + number % _PORTS).to_bytes(2, "big")
        # The checksums become wrong; the profile's censor does not look at them.
        for data, address_at, port_at, side in templates:
            data[address_at : address_at + 4] = address
            data[port_at : port_at + 2] = port
            yield bytes(data), side


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


if __name__ == "__main__":
    main()
