"""A program: the engine alone with many flows. Prints JSON, memory in MB (10^6 bytes).

argv: rule file, how many flows.
"""

import gc
import json
import os
import sys
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
    hello = client_hello(allowed_name(0))
    half = hello[: len(hello) // 2]
    gc.collect()
    idle = resident()
    for number in range(count):
        now = _START + number * 1e-4
        client = bytes([192, 0, 2, 1 + number // _PORTS])
        forth = FiveTuple(Transport.TCP, client, _FIRST_PORT + number % _PORTS, _SERVER, 443)
        for data, side in (
            (build_tcp(forth, seq=1000, ack=0, flags=_SYN), Side.INSIDE),
            (build_tcp(forth.reversed(), seq=5000, ack=1001, flags=_SYN | _ACK), Side.OUTSIDE),
            (build_tcp(forth, seq=1001, ack=5001, flags=_ACK), Side.INSIDE),
            (build_tcp(forth, seq=1001, ack=5001, flags=_ACK | _PSH, payload=half), Side.INSIDE),
        ):
            engine.handle(PacketArrived(number, data, now, side))
    gc.collect()
    print(json.dumps({"flows": engine.flow_count, "idle": idle, "added": resident() - idle}))


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


if __name__ == "__main__":
    main()
