"""Forged packets arrive exactly as they were asked for, and disturb nothing."""

from __future__ import annotations

import os
import socket
import struct

from kernel_net import CLIENT4, CLIENT6, INSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run, wait_until
from stub_daemon import SilentOutputs, StubDaemon, accept, drop, offload_accept

from gfwemu.engine.commands import Command, Inject
from gfwemu.engine.events import PacketArrived
from gfwemu.kernel.inject import Injector
from gfwemu.model import FiveTuple, address_bytes
from gfwemu.wire.build import build_tcp, build_udp

TO_CLIENT4 = FiveTuple(17, address_bytes(SERVER4), 53, address_bytes(CLIENT4), 5353)
TO_CLIENT6 = FiveTuple(17, address_bytes(SERVER6), 53, address_bytes(CLIENT6), 5353)


def _captured(sniffer: socket.socket, wanted: bytes) -> bytes:
    """The first packet with these bytes in it."""
    while True:
        data = sniffer.recv(65_535)
        if wanted in data:
            return data


@in_namespaces
def test_the_bytes_on_the_wire_are_the_bytes_asked_for(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    injector, sniffer = Injector(), net.sniffer("client")
    # Or else the client would answer with ICMP errors, which do meet the queue.
    _open = [net.udp("client", family, 5353) for family in (socket.AF_INET, socket.AF_INET6)]
    for number, packet in enumerate(
        (
            build_udp(TO_CLIENT4, b"plain 00", ttl=64, ip_id=0x1234, dont_fragment=True),
            build_udp(TO_CLIENT4, b"zero  01", ttl=1, ip_id=0, dont_fragment=False),
            build_udp(TO_CLIENT4, b"df    02", ttl=255, ip_id=0, dont_fragment=True),
            build_udp(TO_CLIENT4, b"wrong 03", ttl=37, ip_id=7, dont_fragment=False, checksum=0xBAD),
            build_udp(TO_CLIENT6, b"six   04", ttl=9, ip_id=0, dont_fragment=False, checksum=0xBAD),
        )
    ):
        assert injector.send(packet)
        assert _captured(sniffer, b"%02d" % number) == packet
    tcp = FiveTuple(6, address_bytes(SERVER4), 80, address_bytes(CLIENT4), 40000)
    reset = build_tcp(tcp, seq=0xFFFFFFFF, ack=0, flags=4, window=1981, ttl=61, ip_id=0)
    assert injector.send(reset)
    assert _captured(sniffer, b"\x07\xbd") == reset
    assert injector.sent == 6
    assert not injector.failed
    assert daemon.packets() == [], "forged packets never meet the queue"
    daemon.stop()


@in_namespaces
def test_a_forged_fragment_travels_as_a_fragment(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    injector, sniffer = Injector(), net.sniffer("client")
    packet = bytearray(build_udp(TO_CLIENT4, b"f" * 24, ttl=64, ip_id=99, dont_fragment=False))
    packet[6] |= 0x20
    packet[10:12] = bytes(2)
    packet[10:12] = struct.pack("!H", _checksum(bytes(packet[:20])))
    assert injector.send(bytes(packet))
    assert _captured(sniffer, b"f" * 24) == bytes(packet)
    daemon.stop()


def _checksum(header: bytes) -> int:
    total = sum(struct.unpack("!10H", header))
    return ~(total + (total >> 16)) & 0xFFFF


@in_namespaces
def test_a_forged_reset_does_not_end_the_connection_for_conntrack(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    listener, client = net.listen(), net.tcp()
    client.bind((CLIENT4, 40000))
    client.connect((SERVER4, 80))
    accepted, _ = listener.accept()
    tcp = FiveTuple(6, address_bytes(CLIENT4), 40000, address_bytes(SERVER4), 80)
    (following,) = struct.unpack("!I", daemon.packets()[0][1][24:28])
    # The right sequence number, which conntrack would believe, and a wrong checksum, for which the server does not.
    assert Injector().send(build_tcp(tcp, seq=following + 1 & 0xFFFFFFFF, ack=0, flags=4, checksum=0xBAD))
    accepted.sendall(b"still here")
    assert client.recv(100) == b"still here"
    assert "ESTABLISHED" in run("conntrack -L -p tcp 2>/dev/null")
    before = len(daemon.packets())
    client.sendall(b"offloaded still")
    assert accepted.recv(100) == b"offloaded still"
    assert len(daemon.packets()) == before
    daemon.stop()


@in_namespaces
def test_what_cannot_be_sent_is_counted_by_reason() -> None:
    injector = Injector()
    run(f"ip link set {INSIDE} mtu 1280")
    assert not injector.send(build_udp(TO_CLIENT4, bytes(1400), ttl=64, ip_id=1, dont_fragment=False))
    assert not injector.send(build_udp(TO_CLIENT6, bytes(1400), ttl=64, ip_id=1, dont_fragment=False))
    for unreachable in ("203.0.113.1", "2001:db8:ffff::1"):
        five = FiveTuple(
            17, address_bytes(CLIENT4 if "." in unreachable else CLIENT6), 1, address_bytes(unreachable), 1
        )
        assert not injector.send(build_udp(five, b"x", ttl=64, ip_id=1, dont_fragment=False))
    for rubbish in (b"", b"E", b"\x60", bytes(40)):
        assert not injector.send(rubbish)
    assert injector.failed["EMSGSIZE"] == 2
    assert injector.failed["ENETUNREACH"] == 2
    assert injector.failed.total() == 8
    assert injector.sent == 0


@in_namespaces
def test_the_daemon_injects_what_the_engine_orders(net: SmallNet) -> None:
    def poison(event: PacketArrived) -> list[Command]:
        answer = FiveTuple(17, event.data[16:20], 53, event.data[12:16], int.from_bytes(event.data[20:22], "big"))
        return [*drop(event), Inject(build_udp(answer, b"forged", ttl=64, ip_id=0, dont_fragment=False), "a reason")]

    daemon = StubDaemon(poison)
    client = net.udp("client")
    client.connect((SERVER4, 53))
    client.send(b"query")
    assert client.recv(100) == b"forged"
    wait_until(lambda: len(daemon.packets()) == 1, "the query")
    daemon.stop()


@in_namespaces
def test_the_log_is_written_before_what_it_tells_of_is_injected(net: SmallNet) -> None:
    order, send = os.memfd_create("order"), Injector.send
    forged = build_udp(TO_CLIENT4, b"forged", ttl=64, ip_id=0, dont_fragment=True)

    def answer(event: PacketArrived) -> list[Command]:
        os.write(order, b"decided ")
        return [*accept(event), Inject(forged, "forged")]

    def flush(_: SilentOutputs) -> None:
        os.write(order, b"flushed ")

    def sent(injector: Injector, data: bytes) -> bool:
        os.write(order, b"sent ")
        return send(injector, data)

    # Only in this test's own process.
    SilentOutputs.flush, Injector.send = flush, sent  # type: ignore[method-assign]
    daemon = StubDaemon(answer)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"x", (SERVER4, 9000))
    assert server.recv(100) == b"x"
    daemon.stop()
    assert b"decided flushed sent " in os.pread(order, 1000, 0)
