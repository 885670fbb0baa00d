from __future__ import annotations

import itertools
from collections import Counter
from ipaddress import ip_network
from pathlib import Path

from benchmarks.capture import write_capture
from benchmarks.workload import (
    FORBIDDEN,
    allowed_name,
    client_hello,
    listed_names,
    listed_networks,
    write_hellos,
    write_profile,
    write_queries,
)

from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived
from gfwemu.engine.records import RuleHit
from gfwemu.model import FiveTuple, Transport
from gfwemu.replay.capture import read_capture
from gfwemu.rules.load import load_rules
from gfwemu.rules.plan import compile_plan
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Malformed, TcpFlags
from gfwemu.wire.parse import parse_packet

NAMES, NETWORKS = 500, 300
FORTH = FiveTuple(Transport.TCP, bytes([192, 0, 2, 10]), 40_000, bytes([203, 0, 113, 1]), 443)


def test_lists_are_the_same_in_every_run_and_without_doubles() -> None:
    names = list(listed_names(5000))
    assert names == list(listed_names(5000))
    assert len({*names, FORBIDDEN}) == 5001
    networks = [ip_network(text) for text in listed_networks(5000)]
    assert all(left.broadcast_address < right.network_address for left, right in itertools.pairwise(networks))


def test_as_many_names_and_networks_as_are_wanted() -> None:
    assert sum(1 for _ in listed_networks(200_000)) == 200_000
    assert len(set(listed_names(200_000))) == 200_000


def test_profile_is_right_and_has_what_was_asked_for(tmp_path: Path) -> None:
    rules = load_rules([write_profile(tmp_path / "big", NAMES, NETWORKS)])
    assert rules.lists == {"names": NAMES, "networks": NETWORKS}
    plan = compile_plan(rules)
    assert plan.offload
    assert [rule.name for rule in plan.rules] == ["address"]
    assert len(plan.rules[0].servers) == NETWORKS


def decided(tmp_path: Path, name: str) -> list[str]:
    """The rules of the big profile that a connection with a ClientHello of that name meets."""
    engine = Engine(load_rules([write_profile(tmp_path / "big", NAMES, NETWORKS)]))
    hits = []
    packets = (
        build_tcp(FORTH, seq=1, ack=0, flags=TcpFlags.SYN),
        build_tcp(FORTH.reversed(), seq=9, ack=2, flags=TcpFlags.SYN | TcpFlags.ACK),
        build_tcp(FORTH, seq=2, ack=10, flags=TcpFlags.ACK),
        build_tcp(FORTH, seq=2, ack=10, flags=TcpFlags.ACK | TcpFlags.PSH, payload=client_hello(name)),
    )
    for number, data in enumerate(packets):
        for command in engine.handle(PacketArrived(number, data, 1000.0 + number)):
            record = getattr(command, "record", None)
            if isinstance(record, RuleHit):
                hits.append(record.rule)
    return hits


def test_client_hello_of_a_listed_name_meets_its_rule(tmp_path: Path) -> None:
    assert decided(tmp_path, FORBIDDEN) == ["tls"]


def test_client_hello_of_another_name_meets_none(tmp_path: Path) -> None:
    assert decided(tmp_path, allowed_name(7)) == []


def test_hellos_are_different(tmp_path: Path) -> None:
    write_hellos(tmp_path / "hellos", 20)
    hellos = [bytes.fromhex(line) for line in (tmp_path / "hellos").read_text().split()]
    assert len(set(hellos)) == 20
    assert all(allowed_name(number).encode() in hello for number, hello in enumerate(hellos))


def test_half_of_the_queries_is_for_listed_names(tmp_path: Path) -> None:
    write_queries(tmp_path / "queries", NAMES)
    asked = [line.split() for line in (tmp_path / "queries").read_text().splitlines()]
    listed = set(listed_names(NAMES - 1))
    assert {kind for _, kind in asked} == {"A"}
    assert Counter(name in listed for name, _ in asked) == {True: NAMES - 1, False: NAMES - 1}


def test_capture_is_ordinary_traffic_that_replay_can_read(tmp_path: Path) -> None:
    path = tmp_path / "ordinary.pcap"
    write_capture(path, 5000)
    ports: Counter[int] = Counter()
    with path.open("rb") as stream:
        frames = list(read_capture(stream, str(path)))
    assert len(frames) == 5000
    assert all(left.time < right.time for left, right in itertools.pairwise(frames))
    for frame in frames:
        packet = parse_packet(frame.data)
        assert not isinstance(packet, Malformed)
        ports[min(packet.sport, packet.dport)] += 1
    assert {53, 80, 443, 5222} <= set(ports)
    assert ports[443] > sum(ports.values()) / 3
